"""Jobs under a real Slurm of two nodes: what comes out is what one host gives, whatever happens on the way."""

import hashlib
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megaslm.config.schema import RunConfig
from megaslm.config.source import dump
from megaslm.preparing.prepare import prepare
from tests.corpus import content, recipe_of, write_corpus
from tests.faults.injected import injected_in
from tests.faults.runs import LONGER, STEPS, Material, records, run_ranks, steps_made, weights_sha256
from tests.forks import wait_until
from tests.injection.faults import injecting
from tests.launched import ROOT
from tests.messages import lines_with
from tests.multinode.hosts import Hosts
from tests.multinode.slurm_cluster import SlurmCluster, why_there_is_none
from tests.multinode.slurm_job import SCRIPTS, SlurmJob
from tests.scoring import make_reference, rows_of
from tests.toy import write_config
from tests.training import losses

TWO_RANKS = ("--nodes=2", "--ntasks-per-node=1")
TRAIN = (*TWO_RANKS, SCRIPTS / "train.sbatch")
UNWIELDY = """it's a "folder"; $(touch hacked)"""
MANY_STEPS = 4000
# Loaders get Slurm's signals too.
LOADING = {"loader_workers": 1}
# The watchdog's limits for a rank that has died, and Slurm's own time.
ENDED_WITHIN_SECONDS = 30


@pytest.fixture
def cluster(hosts: Hosts) -> Iterator[SlurmCluster]:
    """With no job in it; skips where this machine has no Slurm."""
    if reason := why_there_is_none():
        pytest.skip(reason)
    with SlurmCluster(hosts) as cluster:
        yield cluster


def test_a_training_on_two_nodes_is_that_of_one_host_with_two_ranks(
    cluster: SlurmCluster, material: Material, undisturbed_run: RunConfig, tmp_path: Path
) -> None:
    """Also with paths, a job name and an environment that are not made for it."""
    folder = tmp_path / UNWIELDY
    folder.mkdir()
    config = material.config(folder / "run")
    run = write_config(folder / "the run.yaml", config)
    leftovers = {"RANK": "7", "WORLD_SIZE": "8", "LOCAL_RANK": "7", "MASTER_ADDR": "elsewhere", "MASTER_PORT": "1"}
    job = SlurmJob(cluster, folder / "output.txt", "--job-name=$(touch hacked) `", *TRAIN, run, environment=leftovers)
    assert job.end(seconds=120)["JobState"] == "COMPLETED", job.output
    assert losses(Path(config.run_dir)) == losses(Path(undisturbed_run.run_dir))
    assert weights_sha256(config) == weights_sha256(undisturbed_run)
    assert steps_made(job.output) == list(range(1, STEPS + 1))
    assert not list(ROOT.glob("hacked"))


@pytest.mark.slow
def test_a_reference_is_trained_and_exported(
    cluster: SlurmCluster, material: Material, undisturbed_run: RunConfig, tmp_path: Path
) -> None:
    run = write_config(tmp_path / "run.yaml", material.config(tmp_path / "not here"))
    folders = tmp_path / UNWIELDY / "run", tmp_path / UNWIELDY / "model"
    job = SlurmJob(cluster, tmp_path / "output.txt", *TWO_RANKS, SCRIPTS / "reference.sbatch", run, *folders)
    assert job.end(seconds=120)["JobState"] == "COMPLETED", job.output
    exported = (folders[1] / "model.safetensors").read_bytes()
    assert hashlib.sha256(exported).hexdigest() == weights_sha256(undisturbed_run)
    assert not (tmp_path / "not here").exists()


def test_ranks_are_where_the_list_of_hosts_says(cluster: SlurmCluster, tmp_path: Path) -> None:
    """Whatever the shell that submits the job says of how tasks are to be distributed."""
    program = tmp_path / "megaslm" / "__main__.py"
    program.parent.mkdir()
    program.write_text("import os; print(os.environ['RANK'], os.uname().nodename, os.environ['MEGASLM_HOSTS'])")
    (tmp_path / "launcher").symlink_to(ROOT / "launcher")
    (tmp_path / "hosts").write_text("node-2\nnode-1\nnode-2\nnode-1\n")
    leftovers = {"SLURM_DISTRIBUTION": "cyclic", "SLURM_HOSTFILE": str(tmp_path / "hosts")}
    command = ("--nodes=2", "--ntasks-per-node=2", f"--chdir={tmp_path}", SCRIPTS / "train.sbatch")
    job = SlurmJob(cluster, tmp_path / "output.txt", *command, environment=leftovers)
    assert job.end(seconds=60)["JobState"] == "COMPLETED", job.output
    hosts = ["node-1", "node-1", "node-2", "node-2"]
    said = [f"{rank} {host} node-1:2,node-2:2" for rank, host in enumerate(hosts)]
    first, *others = job.output.splitlines()
    assert lines_with(first, f"{len(hosts)} ranks", "node-[1-2]")
    assert sorted(others) == said


def test_arrays_prepare_and_score_what_one_process_does(
    cluster: SlurmCluster, material: Material, tmp_path: Path
) -> None:
    recipe, dataset, scored = tmp_path / "a recipe.yaml", tmp_path / "dataset", tmp_path / "scored"
    recipe.write_text(dump(recipe_of(write_corpus(tmp_path / "corpus"))))
    make_reference(tmp_path / "reference")
    verbs: dict[str, list[str | Path]] = {
        "score": ["--reference", tmp_path / "reference", "--batch-rows=4", material.tokens, scored],
        "prepare": [recipe, dataset],
    }
    output, joining = tmp_path / "output.txt", []
    for verb, arguments in verbs.items():
        array = SlurmJob(cluster, output, "--array=1-2", SCRIPTS / f"{verb}_array.sbatch", *arguments)
        finish = shlex.join([sys.executable, "-m", "megaslm", verb, *map(str, arguments), "--finish"])
        joining.append(SlurmJob(cluster, output, f"--dependency=afterok:{array.number}", "--wrap", finish))
    for job in joining:
        assert job.end(seconds=120)["JobState"] == "COMPLETED", job.output
    assert rows_of(scored) == rows_of(material.scored)
    prepare(recipe_of(tmp_path / "corpus"), tmp_path / "alone", workers=1)
    assert content(dataset) == content(tmp_path / "alone")


@pytest.mark.slow
def test_a_preempted_job_saves_and_comes_back_by_itself(
    cluster: SlurmCluster, material: Material, tmp_path: Path
) -> None:
    job, run = endless(cluster, material, tmp_path)
    job.wait_until_it_says(" · step 3/")
    is_done = tmp_path / "done"
    urgent = ["--partition=urgent", "--nodes=2", "--wrap", f"until [ -e {is_done} ]; do sleep 0.1; done"]
    SlurmJob(cluster, tmp_path / "urgent.txt", *urgent)
    job.wait_until_it_waits(seconds=60)
    is_done.touch()
    assert_it_has_saved_and_loses_no_step(job, run, material, tmp_path)


@pytest.mark.slow
def test_a_job_whose_time_is_nearly_up_saves_and_comes_back_by_itself(
    cluster: SlurmCluster, material: Material, tmp_path: Path
) -> None:
    """Slurm looks at the time twice a minute, and tells it 45 to 75 seconds before its two minutes are up."""
    job, run = endless(cluster, material, tmp_path, "--time=2", "--signal=USR1@45")
    job.wait_until_it_says(" · step 3/")
    job.wait_until_it_waits(seconds=120)
    # It is not told a second time, however slow this machine is.
    cluster.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=10")
    assert_it_has_saved_and_loses_no_step(job, run, material, tmp_path)


@pytest.mark.slow
def test_a_job_that_has_lost_a_node_comes_back_by_itself(
    cluster: SlurmCluster, hosts: Hosts, material: Material, tmp_path: Path
) -> None:
    job, run = endless(cluster, material, tmp_path)
    job.wait_until_it_says(" · saved step 4: ")
    hosts.second.lose()
    job.wait_until_it_waits(seconds=120)
    hosts.second.boot()
    cluster.start_node(hosts.second)
    steps = max(steps_made(job.output)) + 4
    assert_it_ends_as_if_undisturbed(job, run, material, tmp_path, steps=steps)


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_on_both_nodes(
    cluster: SlurmCluster, hosts: Hosts, material: Material, tmp_path: Path
) -> None:
    def count_processes() -> list[int]:
        return [len(host.processes()) for host in hosts.all]

    of_the_daemons = count_processes()
    job, _ = endless(cluster, material, tmp_path, **injecting("kill@rank1:step5"))
    ended = job.end(seconds=120)
    (fault,) = injected_in(job.output)
    assert time.time() - fault.seconds < ENDED_WITHIN_SECONDS
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "137:0", "0"), job.output
    wait_until(lambda: count_processes() == of_the_daemons)


def endless(
    cluster: SlurmCluster, material: Material, folder: Path, *options: str, **environment: str
) -> tuple[SlurmJob, Path]:
    """A training that something is to happen to, and its configuration; `options` are sbatch's."""
    run = write_config(folder / "run.yaml", material.config(folder / "run", steps=MANY_STEPS, data=LOADING))
    return SlurmJob(cluster, folder / "output.txt", *options, *TRAIN, run, *LONGER, environment=environment), run


def assert_it_has_saved_and_loses_no_step(job: SlurmJob, run: Path, material: Material, folder: Path) -> None:
    """For a job that was told to stop by SIGUSR1, and waits in the queue."""
    made = steps_made(job.output)
    assert lines_with(job.output, "SIGUSR1", f"step {made[-1]} ", "--resume")
    assert_it_ends_as_if_undisturbed(job, run, material, folder, steps=made[-1] + 4)
    assert steps_made(job.output) == list(range(1, made[-1] + 5))


def assert_it_ends_as_if_undisturbed(job: SlurmJob, run: Path, material: Material, folder: Path, *, steps: int) -> None:
    """The job waits in the queue; when it is started again, it finds how many steps are asked for."""
    last = material.config(folder / "run", steps=steps, data=LOADING)
    write_config(run, last)
    ended = job.end(seconds=120)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), job.output
    assert [record["step"] for record in records(last)] == list(range(1, steps + 1))
    undisturbed = material.config(folder / "undisturbed", steps=steps)
    assert run_ranks(undisturbed) == [0, 0]
    assert weights_sha256(last) == weights_sha256(undisturbed)
