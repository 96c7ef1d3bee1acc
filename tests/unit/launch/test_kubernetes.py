"""The Jobs that Kubernetes is given: held against the schemas of its API, and every value as it was."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from megaslm.config.cluster import KubernetesCluster
from megaslm.errors import ConfigError
from megaslm.launch.command import PROJECT
from megaslm.launch.kubernetes import kubernetes_command
from megaslm.launch.manifest import read_manifests
from megaslm.launch.start import command_of
from megaslm.launch.work import Work

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")

MANIFESTS = PROJECT / "launcher" / "k8s"
API_VERSION = "1.37"
TRAIN = Work("train", ("configs/demo/slm.yaml", "--set", "train.lr=1e-3"))
SCORE = Work("score", ("--reference", "r", "in", "out"))
FINISH = Work("score", ("--reference", "r", "in", "out", "--finish"), is_finish=True)
PREPARE = Work("prepare", ("recipe.yaml", "out"))
MASK = Work("mask", ("scored", "masked"))

HOSTILE = [
    "a b",
    "$(HOME)",
    "$$(HOME) $HOME $",
    "`reboot`",
    'it\'s "so"',
    "a\nkind: Secret\n---\n- b",
    "y",
    "0o17",
    "1e3",
    "null",
    "",
    "{a: [b]}",
    "# no comment",
    "\x85\u2028",
]


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


def documents(place: KubernetesCluster, work: Work) -> list[dict[str, Any]]:
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


def expanded(text: str, variables: dict[str, str]) -> str:
    """As the documentation of a container's `command` says: `$(NAME)` is the variable, and `$$` a dollar."""
    return re.sub(
        r"\$\$|\$\(([^)]*)\)",
        lambda found: "$" if found[0] == "$$" else variables.get(found[1], found[0]),
        text,
    )


@pytest.mark.parametrize("file", sorted(MANIFESTS.glob("*.yaml")), ids=lambda file: file.name)
def test_the_files_are_objects_as_they_stand(file: Path) -> None:
    manifests = read_manifests(file)
    assert manifests
    for manifest in manifests:
        kubernetes_validate.validate(manifest.content(), API_VERSION, strict=True)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("restartPolicy: Never", "restartPolcy: Never"),
        ("completions: 2", "completions: two"),
        ("- name: ranks", "- title: ranks"),
        ("claimName: megaslm", "claim: megaslm"),
        ("medium: Memory", "medium: 1"),
        ("action: FailJob", "acton: FailJob"),
    ],
)
def test_a_broken_manifest_is_caught(right: str, wrong: str) -> None:
    text = (MANIFESTS / "train.yaml").read_text(encoding="utf-8")
    assert right in text
    job = list(yaml.safe_load_all(text.replace(right, wrong)))[1]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, API_VERSION, strict=True)


def test_a_training_is_a_pod_a_node_that_meet_at_the_first() -> None:
    service, job = documents(cluster(namespace="research", environment={"NCCL_DEBUG": "INFO"}), TRAIN)
    spec, name = job["spec"], "megaslm-train"
    assert {document["metadata"]["name"] for document in (service, job)} == {name}
    assert {document["metadata"]["namespace"] for document in (service, job)} == {"research"}
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == (
        "Indexed",
        4,
        4,
    )
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == name
    assert pod["terminationGracePeriodSeconds"] >= 300
    ranks = container(job)
    assert ranks["image"] == "registry.example:5000/slm@sha256:0a"
    assert ranks["workingDir"] == "/shared/megaslm"
    assert ranks["command"] == [
        "/shared/megaslm/launcher/torchrun.sh",
        *TRAIN.words,
        "--resume",
    ]
    assert {variable["name"]: variable["value"] for variable in ranks["env"]} == {
        "NODES": "4",
        "RANKS_PER_NODE": "8",
        "RENDEZVOUS": "megaslm-train-0.megaslm-train:29400",
        "NCCL_DEBUG": "INFO",
    }
    assert ranks["resources"]["limits"] == {"memory": "900Gi", "nvidia.com/gpu": 8}
    assert ranks["resources"]["requests"] == {"cpu": "96", "memory": "900Gi"}
    mounts = {mount["name"]: mount["mountPath"] for mount in ranks["volumeMounts"]}
    assert mounts == {"work": "/shared", "shared-memory": "/dev/shm"}
    claim, memory = pod["volumes"]
    assert claim["persistentVolumeClaim"] == {"claimName": "data"}
    assert memory["emptyDir"] == {"medium": "Memory"}


@pytest.mark.parametrize(("work", "mistake"), [(TRAIN, "FailJob"), (SCORE, "FailIndex")])
def test_what_is_started_again_and_what_is_not(work: Work, mistake: str) -> None:
    job = documents(cluster(), work)[-1]
    rules = job["spec"]["podFailurePolicy"]["rules"]
    by_status = {
        status: rule["action"] for rule in rules if "onExitCodes" in rule for status in rule["onExitCodes"]["values"]
    }
    assert by_status == {2: mistake, 75: "Ignore"}
    assert {rule["onExitCodes"]["containerName"] for rule in rules if "onExitCodes" in rule} == {container(job)["name"]}
    (lost,) = [rule for rule in rules if "onPodConditions" in rule]
    assert lost["action"] == "Ignore"
    assert lost["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    # What Kubernetes asks for where there is such a policy.
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert job["spec"]["backoffLimitPerIndex"] > 0


def test_parts_are_shared_out_among_the_pods() -> None:
    (job,) = documents(cluster(), SCORE)
    assert job["metadata"]["name"] == "megaslm-score"
    assert (
        job["spec"]["completionMode"],
        job["spec"]["completions"],
        job["spec"]["parallelism"],
    ) == ("Indexed", 4, 4)
    assert container(job)["command"] == [
        "/shared/megaslm/launcher/k8s/part.sh",
        "4",
        *SCORE.words,
    ]
    assert container(job)["env"] == [{"name": "RANKS", "value": "8"}]
    assert container(job)["resources"]["limits"]["nvidia.com/gpu"] == 8
    (job,) = documents(cluster(), PREPARE)
    assert container(job)["command"] == [
        "/shared/megaslm/launcher/k8s/part.sh",
        "4",
        *PREPARE.words,
    ]
    assert "nvidia.com/gpu" not in container(job)["resources"]["limits"]


@pytest.mark.parametrize(("work", "name"), [(FINISH, "megaslm-score-finish"), (MASK, "megaslm-mask")])
def test_what_one_process_does_is_one_pod_without_a_gpu(work: Work, name: str) -> None:
    (job,) = documents(cluster(), work)
    assert job["metadata"]["name"] == name
    assert job["spec"]["completions"] == 1
    assert container(job)["command"] == ["python", "-m", "megaslm", *work.words]
    assert "nvidia.com/gpu" not in container(job)["resources"]["limits"]


def test_nodes_without_gpus_and_with_a_secret() -> None:
    _, job = documents(cluster(gpus_per_node=None, ranks_per_node=2, secret_name="s3"), TRAIN)
    assert "nvidia.com/gpu" not in container(job)["resources"]["limits"]
    assert container(job)["envFrom"] == [{"secretRef": {"name": "s3"}}]
    assert {"name": "RANKS_PER_NODE", "value": "2"} in container(job)["env"]
    assert {"name": "OMP_NUM_THREADS", "value": "48"} in container(job)["env"]


def test_a_part_is_told_by_the_pods() -> None:
    with pytest.raises(ConfigError, match="--part: on a cluster of kind kubernetes"):
        command_of(cluster(), Work("score", (*SCORE.arguments, "--part", "1/4"), is_share=True))


@pytest.mark.parametrize("value", HOSTILE)
def test_a_hostile_value_arrives_as_it_is(value: str) -> None:
    place = cluster(environment={"HOME": "/root", "VALUE": value})
    for work in (Work("train", (value, *HOSTILE)), Work("score", (value, *HOSTILE))):
        job = documents(place, work)[-1]
        variables: dict[str, str] = {}
        for variable in container(job)["env"]:
            variables[variable["name"]] = expanded(variable["value"], variables)
        assert variables["VALUE"] == value
        words = [expanded(word, variables) for word in container(job)["command"]]
        start = words.index(work.verb) + 1
        assert words[start : start + 1 + len(HOSTILE)] == [value, *HOSTILE]


def test_text_that_readers_of_yaml_take_for_something_else_is_in_quotes() -> None:
    words = ("y", "0o17", "1e3", "null", "yes", "~", "1_0", "12:30", "=", "<<")
    place = cluster(environment={f"V{number}": word for number, word in enumerate(words)})
    lines = (kubernetes_command(place, TRAIN).standard_input or "").splitlines()
    for word in words:
        assert any(line.strip() in (f'value: "{word}"', f"value: '{word}'") for line in lines), word


def test_a_field_that_is_not_there_is_named(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("kind: Job\nspec: {template: {}}\n", encoding="utf-8")
    (manifest,) = read_manifests(file)
    with pytest.raises(
        ConfigError,
        match=r"train.yaml: the Job has no field spec.template.spec.subdomain",
    ):
        manifest.set("x", "spec", "template", "spec", "subdomain")
    file.write_text("kind: [", encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_manifests(file)
    file.write_text("- a\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="must hold Kubernetes objects"):
        read_manifests(file)


def test_a_file_without_its_objects_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "launcher" / "k8s").mkdir(parents=True)
    (tmp_path / "launcher" / "k8s" / "train.yaml").write_text("kind: Job\n", encoding="utf-8")
    monkeypatch.setattr("megaslm.launch.command.PROJECT", tmp_path)
    with pytest.raises(ConfigError, match=r"train.yaml: holds Job; must hold one each of Service, Job"):
        kubernetes_command(cluster(), TRAIN)
