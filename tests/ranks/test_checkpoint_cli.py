"""`megaslm checkpoint` as a user runs it, on a run's folder with four small checkpoints."""

import json
import subprocess
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import pytest

from megaslm.config.run_files import COMPLETE
from megaslm.config.source import dump
from megaslm.training.checkpoints.file_list import describe, write_file_list
from megaslm.training.checkpoints.store import complete_checkpoints, step_folder
from megaslm.training.run_folder import take
from tests.forked_cli import call_megaslm
from tests.messages import Says
from tests.toy import run_config

STEPS = (10, 20, 30, 40)
WEIGHTS = "weights-00001.safetensors"
FILES = {"weights-00000.safetensors": b"w" * 700, WEIGHTS: b"v" * 500, "progress.json": b"{}"}
SIZE_BYTES = sum(map(len, FILES.values()))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Keeps two checkpoints, by its configuration."""
    run = tmp_path / "run"
    for step in STEPS:
        folder = step_folder(run / "checkpoints", step)
        folder.mkdir(parents=True)
        for name, content in FILES.items():
            (folder / name).write_bytes(content)
        write_file_list(folder, {name: describe(folder / name) for name in FILES})
    config = run_config(run, tmp_path, checkpoint={"keep_last": 2})
    (run / "config.yaml").write_text(dump(config), encoding="utf-8")
    return run


def checkpoint(*arguments: str | Path, expect_status: int = 0) -> "subprocess.CompletedProcess[str]":
    done = call_megaslm("checkpoint", *arguments)
    assert done.returncode == expect_status, done.stderr
    assert "Traceback" not in done.stderr
    return done


def steps_left(run: Path) -> list[int]:
    return [one.step for one in complete_checkpoints(run / "checkpoints")]


def folder_of(run: Path, step: int) -> str:
    return str(step_folder(run / "checkpoints", step))


def test_ls_lists_what_is_complete_oldest_first(run: Path, tmp_path: Path, says: Says) -> None:
    (step_folder(run / "checkpoints", 20) / COMPLETE).unlink()
    done = checkpoint("ls", run, "--json", tmp_path / "listed.json")
    lines = [line.split(" · ") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [folder_of(run, step) for step in (10, 30, 40)]
    assert {line[1] for line in lines} == {lines[0][1]}
    says(lines[0][1], "1.2 kB", "2")
    listed = json.loads((tmp_path / "listed.json").read_text())
    assert [(one["folder"], one["step"], one["bytes"], one["ranks"]) for one in listed] == [
        (folder_of(run, step), step, SIZE_BYTES, 2) for step in (10, 30, 40)
    ]
    assert all(datetime.fromisoformat(one["written"]).tzinfo is not None for one in listed)


def test_verify_finds_nothing_in_what_is_as_it_was_written(run: Path, tmp_path: Path, says: Says) -> None:
    done = checkpoint("verify", run, "--json", tmp_path / "found.json")
    assert [line.split(" · ")[0] for line in done.stdout.splitlines()] == [folder_of(run, step) for step in STEPS]
    says(done.stdout)
    assert json.loads((tmp_path / "found.json").read_text()) == {folder_of(run, step): None for step in STEPS}


def test_verify_names_what_is_corrupt_and_looks_at_all(run: Path, tmp_path: Path, says: Says) -> None:
    checkpoints = {step: step_folder(run / "checkpoints", step) for step in STEPS}
    (checkpoints[10] / WEIGHTS).write_bytes(b"v" * 499 + b"u")
    (checkpoints[20] / WEIGHTS).unlink()
    (checkpoints[30] / COMPLETE).write_text("sha256 0\n{}\n")
    done = checkpoint("verify", run, "--json", tmp_path / "found.json", expect_status=2)
    says(done.stderr, "CheckpointError: 3 of 4 ")
    says(done.stdout, *(checkpoints[step] for step in STEPS), WEIGHTS)
    found = json.loads((tmp_path / "found.json").read_text())
    assert [bool(problem) for problem in found.values()] == [True, True, True, False]


def test_verify_takes_one_checkpoint_too(run: Path, says: Says) -> None:
    corrupt, whole = (step_folder(run / "checkpoints", step) for step in (10, 20))
    (corrupt / WEIGHTS).write_bytes(b"short")
    says(checkpoint("verify", whole).stdout, whole)
    says(checkpoint("verify", corrupt, expect_status=2).stdout, WEIGHTS, "5", "500")


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ((), [30, 40]),
        (("--keep-last", "1"), [40]),
        (("--keep-every-steps", "20"), [20, 30, 40]),
        (("--keep-last", "4"), [10, 20, 30, 40]),
    ],
)
def test_prune_removes_what_is_not_to_be_kept(
    run: Path, tmp_path: Path, options: tuple[str, ...], left: list[int]
) -> None:
    gone = [folder_of(run, step) for step in STEPS if step not in left]
    planned = checkpoint("prune", run, *options, "--dry-run", "--json", tmp_path / "planned.json")
    assert steps_left(run) == list(STEPS)
    done = checkpoint("prune", run, *options, "--json", tmp_path / "gone.json")
    assert steps_left(run) == left
    assert not any(Path(folder).exists() for folder in gone)
    for said, verb, noted in ((planned, "would go", "planned.json"), (done, "removed", "gone.json")):
        expected = [f"{folder} · {verb}" for folder in gone] or [f"{run} · all 4 checkpoints stay"]
        assert said.stdout.splitlines() == expected
        assert json.loads((tmp_path / noted).read_text()) == gone


def test_prune_removes_nothing_while_a_job_trains(run: Path, says: Says) -> None:
    with ExitStack() as held:
        list(take(run, held))
        done = checkpoint("prune", run, "--keep-last", "1", expect_status=2)
    says(done.stderr, run)
    assert steps_left(run) == list(STEPS)


def test_prune_removes_nothing_where_the_newest_is_corrupt(run: Path, says: Says) -> None:
    newest = step_folder(run / "checkpoints", 40)
    (newest / WEIGHTS).write_bytes(b"x" * 500)
    done = checkpoint("prune", run, expect_status=2)
    says(done.stderr, "CheckpointError", newest, WEIGHTS)
    assert steps_left(run) == list(STEPS)


@pytest.mark.parametrize("command", ["ls", "verify", "prune"])
def test_a_folder_that_is_no_run_is_refused(command: str, tmp_path: Path) -> None:
    done = checkpoint(command, tmp_path, expect_status=2)
    assert str(tmp_path) in done.stderr
    assert done.stdout == ""
