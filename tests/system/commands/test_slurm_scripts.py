"""The scripts of Slurm jobs, tried with what Slurm sets and programs that stand in for Slurm's and for the verbs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.messages import Says

SCRIPTS = Path(__file__).resolve().parents[3] / "launcher" / "slurm"

VERB = """
import json, os, pathlib, signal, sys
of_ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
names = (*of_ranks, "MASTER_ADDR", "MASTER_PORT", "MEGASLM_HOSTS", "OMP_NUM_THREADS")
pathlib.Path("ran.json").write_text(json.dumps([sys.argv[1:], {name: os.environ.get(name) for name in names}]))
if "SIGNAL_TO_ALL" in os.environ:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    os.killpg(0, signal.SIGUSR1)
status = int(os.environ.get("VERB_STATUS", 0))
sys.exit(status if status in (0, 143) else print("SomeError: why", file=sys.stderr) or status)
"""
SRUN = """#!/usr/bin/env bash
# Runs the last of the job's tasks, and notes how it was asked to.
while [[ "$1" == --* ]]; do options+=("$1"); shift; done
printf '%s\\n' "${options[@]}" >srun.txt
trap : USR1
SLURM_PROCID=5 SLURM_LOCALID=2 "$@"
status=$?
((status == 0)) || echo "srun: error: node-9: tasks 0-5: Exited with exit code $status" >&2
exit "$status"
"""
SCONTROL = """#!/usr/bin/env bash
case "$1" in
    show) printf 'node-7\\nnode-9\\n' ;;
    requeue) echo "$2" >requeued.txt ;;
esac
"""
SQUEUE = """#!/usr/bin/env bash
echo "${JOB_STATE:-RUNNING}"
"""
HOSTILE = [
    "a b",
    "it's",
    '"quoted"',
    "$(touch hacked)",
    "`touch hacked`",
    "a;touch hacked",
    "*",
    "",
    "--export=NONE",
    "\n",
]


@pytest.fixture
def submitted_from(tmp_path: Path) -> Path:
    """A folder with an unwieldy name, whose `megaslm` notes what it was asked for; `python -m` looks there first."""
    folder = tmp_path / "it's a folder"
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("squeue", SQUEUE)):
        program = folder / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(text, encoding="utf-8")
        program.chmod(0o755)
    (folder / "megaslm").mkdir()
    (folder / "megaslm" / "__init__.py").touch()
    (folder / "megaslm" / "__main__.py").write_text(VERB, encoding="utf-8")
    (folder / "launcher").symlink_to(SCRIPTS.parent)
    return folder


def run(folder: Path, script: str, *arguments: str, **variables: str | int) -> "subprocess.CompletedProcess[str]":
    """Runs a script as Slurm does, in a job of two nodes with three tasks each."""
    job = {"SLURM_JOB_ID": 123_456, "SLURM_JOB_NUM_NODES": 2, "SLURM_JOB_NODELIST": "node-[7,9]"}
    environment = {
        "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        **{name: str(value) for name, value in {**job, "SLURM_NTASKS_PER_NODE": 3, **variables}.items()},
    }
    command = [str(SCRIPTS / script), *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, start_new_session=True
    )


def ran(folder: Path) -> tuple[list[str], dict[str, str | None]]:
    """The arguments that the verb got, and what its environment said of the ranks."""
    arguments, environment = json.loads((folder / "ran.json").read_text(encoding="utf-8"))
    return arguments, environment


def share_of(folder: Path) -> str:
    """What follows --share, the last of the verb's options."""
    arguments, _ = ran(folder)
    assert arguments[-2] == "--share"
    return arguments[-1]


def test_a_task_becomes_a_rank_with_its_arguments_intact(submitted_from: Path) -> None:
    leftovers = {"RANK": "9", "WORLD_SIZE": "9", "MASTER_ADDR": "elsewhere", "MASTER_PORT": "1", "MEGASLM_HOSTS": "x:9"}
    done = run(submitted_from, "train.sbatch", *HOSTILE, SLURM_JOB_NAME="$(touch hacked)", **leftovers)
    assert done.returncode == 0, done.stderr
    arguments, environment = ran(submitted_from)
    assert arguments == ["train", *HOSTILE, "--resume"]
    assert environment == {
        "RANK": "5",
        "WORLD_SIZE": "6",
        "LOCAL_RANK": "2",
        "LOCAL_WORLD_SIZE": "3",
        "MASTER_ADDR": "node-7",
        "MASTER_PORT": "23456",
        "MEGASLM_HOSTS": "node-7:3,node-9:3",
        "OMP_NUM_THREADS": "1",
    }
    assert not (submitted_from / "hacked").exists()


def test_what_a_job_asked_for_its_tasks_get(submitted_from: Path) -> None:
    variables = {"SLURM_CPUS_PER_TASK": 12, "SLURM_GPUS_ON_NODE": 3, "SLURM_EXPORT_ENV": "NONE"}
    assert run(submitted_from, "train.sbatch", "run.yaml", **variables).returncode == 0
    options = (submitted_from / "srun.txt").read_text().splitlines()
    asked_for = {"--nodes=2", "--ntasks=6", "--ntasks-per-node=3", "--cpus-per-task=12"}
    assert {*asked_for, "--distribution=block", "--export=ALL"} <= set(options)
    assert ran(submitted_from)[1]["OMP_NUM_THREADS"] == "12"


@pytest.mark.parametrize(("status", "goes_back"), [(0, False), (1, False), (2, False), (75, True), (143, True)])
def test_a_job_that_was_told_to_stop_goes_back_into_the_queue(
    submitted_from: Path, status: int, goes_back: bool
) -> None:
    done = run(submitted_from, "train.sbatch", "run.yaml", VERB_STATUS=status)
    assert done.returncode == status
    assert (submitted_from / "requeued.txt").exists() == goes_back


@pytest.mark.parametrize("status", [2, 75])
def test_a_job_says_what_it_starts_and_the_last_word_is_the_ranks(
    submitted_from: Path, status: int, says: Says
) -> None:
    done = run(submitted_from, "train.sbatch", "run.yaml", VERB_STATUS=status)
    says(done.stderr, "123456", "6 ranks", "node-[7,9]", "megaslm train run.yaml --resume", "\nSomeError: why\n")


def test_what_slurm_says_of_a_fault_is_kept(submitted_from: Path, says: Says) -> None:
    says(run(submitted_from, "train.sbatch", "run.yaml", VERB_STATUS=1).stderr, "SomeError: why", "srun: error: node-9")


@pytest.mark.parametrize("script", ["train.sbatch", "reference.sbatch"])
def test_a_signal_for_all_processes_of_a_job_is_left_to_the_ranks(submitted_from: Path, script: str) -> None:
    """As `scancel --full --signal=USR1` sends it."""
    done = run(submitted_from, script, "run.yaml", "run", "model", SIGNAL_TO_ALL=1, VERB_STATUS=75)
    assert done.returncode == 75
    assert (submitted_from / "requeued.txt").exists()


def test_a_job_that_is_cancelled_does_not_come_back(submitted_from: Path) -> None:
    assert run(submitted_from, "train.sbatch", "run.yaml", VERB_STATUS=75, JOB_STATE="COMPLETING").returncode == 75
    assert not (submitted_from / "requeued.txt").exists()


def test_another_number_of_gpus_than_of_tasks_is_refused(submitted_from: Path, says: Says) -> None:
    done = run(submitted_from, "train.sbatch", "run.yaml", SLURM_GPUS_ON_NODE=8)
    assert done.returncode == 2
    says(done.stderr, "3", "8", "--ntasks-per-node=8")


def test_a_job_of_a_clusters_file_is_mended_there(submitted_from: Path, says: Says) -> None:
    done = run(submitted_from, "train.sbatch", "run.yaml", SLURM_GPUS_ON_NODE=8, MEGASLM_CLUSTER="my slurm.yaml")
    assert done.returncode == 2
    says(done.stderr, "gpus_per_node: 8 in my slurm.yaml")


def test_gpus_that_are_hidden_from_the_other_ranks_are_refused(submitted_from: Path) -> None:
    done = run(submitted_from, "train.sbatch", "run.yaml", SLURM_GPUS_ON_NODE=3, SLURM_GPUS_PER_TASK=1)
    assert done.returncode == 2
    assert "--gpus-per-node=3" in done.stderr


def test_a_reference_is_trained_where_it_is_exported_from(submitted_from: Path) -> None:
    done = run(submitted_from, "reference.sbatch", "run.yaml", "runs/it's #1", "models/a b", "--set", "train.lr=1")
    assert done.returncode == 0, done.stderr
    assert ran(submitted_from)[0] == ["export", "runs/it's #1", "models/a b"]
    stopped = run(submitted_from, "reference.sbatch", "run.yaml", "runs/it's #1", "models/a b", VERB_STATUS="75")
    assert stopped.returncode == 75
    assert ran(submitted_from)[0] == ["train", "run.yaml", "--set", "run_dir='runs/it''s #1'", "--resume"]
    assert run(submitted_from, "reference.sbatch", "run.yaml", "runs/reference").returncode == 2


def test_one_process_runs_the_verb_as_it_is(submitted_from: Path) -> None:
    words = ["export", "runs/it's #1", "models/$(a) b"]
    assert run(submitted_from, "one_process.sbatch", *words).returncode == 0
    assert ran(submitted_from)[0] == words
    assert run(submitted_from, "one_process.sbatch", *words, VERB_STATUS=2).returncode == 2


@pytest.mark.parametrize(("task", "least", "most", "part"), [(1, 1, 4, "1/4"), (4, 1, 4, "4/4"), (0, 0, 9, "1/10")])
@pytest.mark.parametrize("verb", ["prepare", "score"])
def test_a_task_of_an_array_does_its_share(
    submitted_from: Path, verb: str, task: int, least: int, most: int, part: str
) -> None:
    array = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_MIN": least, "SLURM_ARRAY_TASK_MAX": most}
    done = run(submitted_from, f"{verb}_array.sbatch", *HOSTILE, **array)
    assert done.returncode == 0, done.stderr
    assert ran(submitted_from)[0] == [verb, *HOSTILE, "--share", part]


def test_some_tasks_of_an_array_are_submitted_again_by_their_numbers(submitted_from: Path, says: Says) -> None:
    array = {"SLURM_ARRAY_TASK_ID": 17, "SLURM_ARRAY_TASK_MIN": 3, "SLURM_ARRAY_TASK_MAX": 40}
    refused = run(submitted_from, "score_array.sbatch", "in", "out", SLURM_ARRAY_TASK_COUNT=3, **array)
    assert refused.returncode == 2
    says(refused.stderr, "--export=ALL,PARTS=COUNT")
    assert run(submitted_from, "score_array.sbatch", "in", "out", PARTS=64, **array).returncode == 0
    assert share_of(submitted_from) == "17/64"


@pytest.mark.parametrize("script", ["ranks.sh", "array_task.sh"])
def test_outside_of_a_job_it_says_how_to_submit_it(submitted_from: Path, script: str) -> None:
    done = run(submitted_from, script, "score", "in", "out", SLURM_JOB_ID="")
    assert done.returncode == 2
    assert ".sbatch" in done.stderr
    assert f"launcher/slurm/{script}" in run(submitted_from, script, "--help").stdout
    assert run(submitted_from, script).returncode == 2
