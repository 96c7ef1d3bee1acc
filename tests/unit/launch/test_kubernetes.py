"""The Jobs that Kubernetes is given for each verb."""

import pytest

from megaslm.errors import ConfigError
from megaslm.launch.command import VerbCall
from megaslm.launch.start import command_of
from tests.messages import Says
from tests.unit.launch.kubernetes_jobs import TRAIN, cluster, container, documents

SCORE = VerbCall("score", ("--reference", "r", "in", "out"))
FINISH = VerbCall("score", ("--reference", "r", "in", "out", "--finish"), is_finish=True)
PREPARE = VerbCall("prepare", ("recipe.yaml", "out"))
MASK = VerbCall("mask", ("scored", "masked"))


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
def test_what_is_started_again_and_what_is_not(work: VerbCall, mistake: str) -> None:
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
def test_what_one_process_does_is_one_pod_without_a_gpu(work: VerbCall, name: str) -> None:
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


def test_a_part_is_told_by_the_pods(says: Says) -> None:
    with pytest.raises(ConfigError) as refused:
        command_of(cluster(), VerbCall("score", (*SCORE.arguments, "--share", "1/4"), is_share=True))
    says(refused, "--share", "kubernetes")
