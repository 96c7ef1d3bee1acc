"""Jobs as Kubernetes is given them, each checked against the schemas of its API."""

from typing import Any

import pytest
import yaml

from megaslm.config.cluster import KubernetesCluster
from megaslm.launch.command import VerbCall
from megaslm.launch.kubernetes import kubernetes_command

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")

API_VERSION = "1.37"
TRAIN = VerbCall("train", ("configs/demo/slm.yaml", "--set", "train.lr=1e-3"))


def cluster(**changes: Any) -> KubernetesCluster:
    settings = {
        "kind": "kubernetes",
        "nodes": 4,
        "gpus_per_node": 8,
        "image": "registry.example:5000/slm@sha256:0a",
        "volume_claim": "data",
        "cpus_per_node": 96,
        "memory_gib_per_node": 900,
    }
    return KubernetesCluster.model_validate({**settings, **changes})


def documents(place: KubernetesCluster, work: VerbCall) -> list[dict[str, Any]]:
    """What Kubernetes is given, each checked against its API."""
    command = kubernetes_command(place, work)
    assert command.words == ("kubectl", "create", "-f", "-")
    found = list(yaml.safe_load_all(command.standard_input or ""))
    for document in found:
        kubernetes_validate.validate(document, API_VERSION, strict=True)
    return found


def container(job: dict[str, Any]) -> dict[str, Any]:
    (only,) = job["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only
