"""From a cluster and a verb to words and variables."""

import sys
from pathlib import Path

import pytest

from megaslm.config.cluster import (
    SET_BY_LAUNCHERS,
    Cluster,
    HostfileCluster,
    LocalCluster,
    OneProcess,
    SlurmCluster,
    TorchrunCluster,
)
from megaslm.errors import ConfigError
from megaslm.launch.command import CLUSTER_FILE, PROJECT, Command, VerbCall
from megaslm.launch.start import command_of
from tests.messages import Says

TRAIN = VerbCall("train", ("run.yaml", "--set", "run_dir=a b"))
SCORE = VerbCall("score", ("--reference", "r", "in", "out"))
FINISH = VerbCall("score", ("--reference", "r", "in", "out", "--finish"), is_finish=True)
PREPARE = VerbCall("prepare", ("recipe.yaml", "out"))
MASK = VerbCall("mask", ("scored", "masked"))
LAUNCHER = PROJECT / "launcher"
ITSELF = (sys.executable, "-m", "megaslm")

LOCAL = LocalCluster(kind="local", ranks=4, environment={"A": "x y"})
HOSTFILE = HostfileCluster(
    kind="hostfile",
    hostfile="my hosts.txt",
    remote_shell="ssh",
    master_addr="10.0.0.1",
    environment={"A": "1", "B": "b"},
)
TORCHRUN = TorchrunCluster(
    kind="torchrun",
    nodes=2,
    ranks_per_node=8,
    rendezvous="node-1:29400",
    max_restarts=3,
)
SLURM = SlurmCluster(
    kind="slurm",
    nodes=4,
    gpus_per_node=8,
    time="12:00:00",
    partition="gpu",
    options={"qos": "high", "exclusive": True},
)


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)


@pytest.mark.parametrize("work", [TRAIN, SCORE])
def test_on_this_host_every_rank_runs_the_verb(work: VerbCall) -> None:
    command = command_of(LOCAL, work)
    assert command.words == (f"{LAUNCHER}/local.sh", *work.words)
    assert command.environment == {"RANKS": "4", "A": "x y"}
    at_a_port = command_of(LOCAL.model_copy(update={"master_port": 29501}), work)
    assert at_a_port.environment == {**command.environment, "MASTER_PORT": "29501"}


@pytest.mark.parametrize("work", [FINISH, PREPARE, MASK])
@pytest.mark.parametrize("cluster", [LOCAL, HOSTFILE, TORCHRUN])
def test_what_one_process_does_is_done_by_one(cluster: Cluster, work: VerbCall) -> None:
    command = command_of(cluster, work)
    assert command.words == (*ITSELF, *work.words)
    assert command.environment == cluster.environment


def test_the_hosts_of_a_hostfile_are_told_which_variables_to_take() -> None:
    command = command_of(HOSTFILE, TRAIN)
    assert command.words == (f"{LAUNCHER}/hostfile.sh", "my hosts.txt", *TRAIN.words)
    assert command.environment == {
        "REMOTE_SHELL": "ssh",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "29500",
        "EXPORT": "A,B",
        "A": "1",
        "B": "b",
    }


def test_what_is_started_again_resumes_from_its_checkpoint() -> None:
    command = command_of(TORCHRUN, TRAIN)
    assert command.words == (f"{LAUNCHER}/torchrun.sh", *TRAIN.words, "--resume")
    assert command.environment == {
        "NODES": "2",
        "RANKS_PER_NODE": "8",
        "RENDEZVOUS": "node-1:29400",
        "MAX_RESTARTS": "3",
    }
    resumed = VerbCall("train", ("run.yaml", "--resume"))
    assert command_of(TORCHRUN, resumed).words == (
        f"{LAUNCHER}/torchrun.sh",
        *resumed.words,
    )
    assert command_of(TorchrunCluster(kind="torchrun", max_restarts=0), TRAIN).words[1:] == TRAIN.words
    assert command_of(TORCHRUN, SCORE).words[1:] == SCORE.words


def test_a_smoke_test_that_fails_is_not_repeated() -> None:
    smoke = VerbCall("train", ("run.yaml", "--smoke"), is_smoke_test=True)
    command = command_of(TORCHRUN, smoke)
    assert command.words == (f"{LAUNCHER}/torchrun.sh", *smoke.words)
    assert command.environment["MAX_RESTARTS"] == "0"


def test_slurm_trains_in_a_job_and_shares_out_in_arrays() -> None:
    place = ("--partition=gpu", "--time=12:00:00", "--qos=high", "--exclusive")
    ranks = ("--gpus-per-node=8", "--ntasks-per-node=8")
    sbatch, slurm = ("sbatch", "--parsable"), LAUNCHER / "slurm"
    again = VerbCall("train", (*TRAIN.arguments, "--resume"))
    for work in (TRAIN, again):
        expected = (
            *sbatch,
            "--nodes=4",
            *ranks,
            *place,
            f"{slurm}/train.sbatch",
            *TRAIN.arguments,
        )
        assert command_of(SLURM, work).words == expected
    scored = (
        *sbatch,
        "--array=1-4",
        *ranks,
        *place,
        f"{slurm}/score_array.sbatch",
        *SCORE.arguments,
    )
    assert command_of(SLURM, SCORE).words == scored
    prepared = (
        *sbatch,
        "--array=1-4",
        *place,
        f"{slurm}/prepare_array.sbatch",
        *PREPARE.arguments,
    )
    assert command_of(SLURM, PREPARE).words == prepared
    for work in (FINISH, MASK):
        expected = (*sbatch, "--nodes=1", "--ntasks=1", *place, f"{slurm}/one_process.sbatch", *work.words)
        assert command_of(SLURM, work).words == expected
    on_cpus = SlurmCluster(kind="slurm", ranks_per_node=2, environment={"A": "1"})
    assert command_of(on_cpus, TRAIN).words[:4] == (
        *sbatch,
        "--nodes=1",
        "--ntasks-per-node=2",
    )
    assert command_of(on_cpus, TRAIN).environment == {"A": "1"}


def test_one_process_asks_for_what_it_needs() -> None:
    small = OneProcess(time="01:00:00", partition="cpu", options={"mem": "64G"})
    words = command_of(SLURM.model_copy(update={"one_process": small}), MASK).words
    given = ("--nodes=1", "--ntasks=1", "--partition=cpu", "--time=01:00:00", "--mem=64G")
    assert words == ("sbatch", "--parsable", *given, f"{LAUNCHER}/slurm/one_process.sbatch", *MASK.words)


@pytest.mark.parametrize("work", [TRAIN, SCORE, PREPARE, FINISH, MASK])
def test_a_job_waits_for_others(work: VerbCall) -> None:
    small = SLURM.model_copy(update={"one_process": OneProcess(options={})})
    for cluster in (SLURM, small):
        waiting = command_of(cluster, work, ("17", "18;cluster"))
        (option,) = set(waiting.words) - set(command_of(cluster, work).words)
        assert option == "--dependency=afterok:17:18"


@pytest.mark.parametrize(("cluster", "job"), [(SLURM, "slurm-17.out"), (SLURM, "17,afterany:18"), (LOCAL, "17")])
def test_only_a_job_of_slurm_can_be_waited_for(cluster: Cluster, job: str, says: Says) -> None:
    with pytest.raises(ConfigError) as refused:
        command_of(cluster, TRAIN, (job,))
    says(refused, f"--after {job}")


def test_slurm_begins_where_its_nodes_find_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        command_of(SLURM, TRAIN)
    says(refused, PROJECT)


def test_the_tasks_of_an_array_are_told_their_part(says: Says) -> None:
    with pytest.raises(ConfigError) as refused:
        command_of(SLURM, VerbCall("score", (*SCORE.arguments, "--share", "1/2"), is_share=True))
    says(refused, "--share", "slurm")


def test_what_another_launcher_left_in_the_shell_does_not_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MINE", *SET_BY_LAUNCHERS):
        monkeypatch.setenv(name, "left over")
    found = Command(("true",), {"A": "x y"}).environment_here(Path("cluster.yaml"))
    assert (found["MINE"], found["A"]) == ("left over", "x y")
    assert {name: found[name] for name in SET_BY_LAUNCHERS if name in found} == {CLUSTER_FILE: "cluster.yaml"}
