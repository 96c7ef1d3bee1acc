"""What a dry run finds of a cluster's hosts, and where a job's output goes."""

import socket
from pathlib import Path

import pytest

from megaslm.config.cluster import Cluster, KubernetesCluster, LocalCluster, SlurmCluster, TorchrunCluster
from megaslm.launch.command import PROJECT, Command, VerbCall
from megaslm.launch.findings import Findings, Reach
from megaslm.launch.kubernetes import job_name
from megaslm.launch.places import findings_of, look_at_hosts, ranks_in_words, ranks_of, where_output_goes
from megaslm.launch.start import load_cluster
from tests.messages import Says

TRAIN = VerbCall("train", ("run.yaml",))
SCORE = VerbCall("score", ("--reference", "r", "in", "out"))
EXPORT = VerbCall("export", ("run", "model"))
SLURM = SlurmCluster(kind="slurm", nodes=4, gpus_per_node=8)


def cluster_of(kind: str) -> Cluster:
    return load_cluster(PROJECT / "launcher" / f"{kind}.yaml")


def looked(cluster: Cluster) -> Findings:
    findings = findings_of(cluster)
    look_at_hosts(findings, cluster, TRAIN, Command(("true",)), Path("cluster.yaml"))
    return findings


def test_a_port_is_free_or_a_problem(says: Says) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        found = looked(LocalCluster(kind="local", master_port=port))
    says("\n".join(found.problems), "master_port = ", PORT=port, HOST=socket.gethostname())
    assert looked(LocalCluster(kind="local", master_port=port)).problems == []


def test_hosts_that_meet_are_waited_for() -> None:
    found = looked(TorchrunCluster(kind="torchrun", nodes=2, rendezvous="nowhere.invalid:29400"))
    assert found.problems == []
    (warning,) = found.warnings
    assert warning.startswith("rendezvous = nowhere.invalid:29400: ")


@pytest.mark.parametrize(("kind", "program"), [("slurm", "sbatch"), ("kubernetes", "kubectl")])
def test_a_host_without_the_scheduler_may_still_print_the_command(
    kind: str, program: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: Says
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = looked(cluster_of(kind))
    assert (found.problems, found.reach) == ([], Reach.NONE)
    says("\n".join(found.lines()), program)


@pytest.mark.parametrize(
    ("cluster", "ranks"),
    [
        (SLURM, 32),
        (LocalCluster(kind="local"), None),
        (TorchrunCluster(kind="torchrun", nodes=2, ranks_per_node=3, rendezvous="node-1:29400"), 6),
    ],
)
def test_ranks_are_counted_where_the_file_says_them(cluster: Cluster, ranks: int | None) -> None:
    assert ranks_of(cluster) == ranks


def test_it_is_said_from_which_settings_the_ranks_follow(says: Says) -> None:
    torchrun = TorchrunCluster(kind="torchrun", nodes=2, ranks_per_node=3, rendezvous="node-1:29400")
    on_cpus = SlurmCluster(kind="slurm", nodes=4, ranks_per_node=2)
    for cluster in (SLURM, on_cpus, torchrun, LocalCluster(kind="local", ranks=2)):
        says(ranks_in_words(cluster, Path("cluster.yaml")), f"{ranks_of(cluster)} ranks", "cluster.yaml")


def test_it_is_said_where_the_output_goes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: Says) -> None:
    monkeypatch.chdir(tmp_path)
    says(where_output_goes(SLURM, TRAIN), f"{tmp_path}/slurm-%j.out")
    says(where_output_goes(SLURM, SCORE), f"{tmp_path}/slurm-%A_%a.out")
    chosen = SLURM.model_copy(update={"options": {"output": "/logs/%x.txt"}})
    says(where_output_goes(chosen, TRAIN), "/logs/%x.txt")
    pods = cluster_of("kubernetes")
    assert isinstance(pods, KubernetesCluster)
    says(where_output_goes(pods, TRAIN), f"job-name={job_name(pods, TRAIN)}")
    says(where_output_goes(SLURM, EXPORT), f"{tmp_path}/slurm-%j.out")
    says(where_output_goes(SLURM, TRAIN, "17"), f"{tmp_path}/slurm-17.out")
    says(where_output_goes(SLURM, SCORE, "17"), f"{tmp_path}/slurm-17_%a.out")
    says(where_output_goes(cluster_of("hostfile"), TRAIN))
