"""The script of a Slurm array, tried with what Slurm sets and a `megaslm` that prints what it was asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "launcher" / "slurm_array.sh"


@pytest.fixture
def submitted_from(tmp_path: Path) -> Path:
    """A folder whose `megaslm` prints its arguments; `python -m` looks there first."""
    (tmp_path / "megaslm").mkdir()
    (tmp_path / "megaslm" / "__init__.py").touch()
    (tmp_path / "megaslm" / "__main__.py").write_text("import sys; print(*sys.argv[1:])", encoding="utf-8")
    return tmp_path


def run(
    folder: Path, *arguments: str, gpus: str | None = None, parts: int | None = None, **slurm: int
) -> "subprocess.CompletedProcess[str]":
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, **{f"SLURM_{name}": str(value) for name, value in slurm.items()}}
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpus
    if parts is not None:
        environment["PARTS"] = str(parts)
    return subprocess.run(
        [str(SCRIPT), *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("task", "least", "most", "part"), [(1, 1, 4, "1/4"), (4, 1, 4, "4/4"), (0, 0, 9, "1/10")])
def test_a_task_of_the_array_does_its_share(submitted_from: Path, task: int, least: int, most: int, part: str) -> None:
    array = {"ARRAY_TASK_ID": task, "ARRAY_TASK_MIN": least, "ARRAY_TASK_MAX": most}
    ran = run(submitted_from, "prepare", "a recipe.yaml", "out", "--workers", "3", **array)
    assert ran.stdout.strip() == f"prepare a recipe.yaml out --workers 3 --part {part}", ran.stderr


def test_some_tasks_of_an_array_are_submitted_again_by_their_numbers(submitted_from: Path) -> None:
    array = {"ARRAY_TASK_ID": 17, "ARRAY_TASK_MIN": 3, "ARRAY_TASK_MAX": 40, "ARRAY_TASK_COUNT": 3}
    refused = run(submitted_from, "score", "in", "out", **array)
    assert refused.returncode == 2
    assert "the array has gaps" in refused.stderr
    ran = run(submitted_from, "score", "in", "out", parts=64, **array)
    assert ran.stdout.strip() == "score in out --part 17/64", ran.stderr


@pytest.mark.parametrize("gpus", [None, "3"])
def test_scoring_on_one_gpu_needs_no_launcher(submitted_from: Path, gpus: str | None) -> None:
    array = {"ARRAY_TASK_ID": 2, "ARRAY_TASK_MIN": 1, "ARRAY_TASK_MAX": 5}
    ran = run(submitted_from, "score", "--reference", "r", "in", "out", gpus=gpus, **array)
    assert ran.stdout.strip() == "score --reference r in out --part 2/5", ran.stderr


def test_scoring_on_several_gpus_is_launched_at_a_port_of_its_own(submitted_from: Path) -> None:
    launcher = submitted_from / "launcher" / "local.sh"
    launcher.parent.mkdir()
    launcher.write_text('#!/bin/sh\necho "$MASTER_PORT" "$@"\n', encoding="utf-8")
    launcher.chmod(0o755)
    array = {"ARRAY_TASK_ID": 2, "ARRAY_TASK_MIN": 1, "ARRAY_TASK_MAX": 5}
    ran = run(submitted_from, "score", "in", "out", gpus="0,1", JOB_ID=123_456, **array)
    assert ran.stdout.strip() == "23456 score in out --part 2/5", ran.stderr


def test_outside_of_an_array_it_says_how_to_submit_it(submitted_from: Path) -> None:
    ran = run(submitted_from, "prepare", "recipe.yaml", "out")
    assert ran.returncode == 2
    assert "sbatch --array=1-COUNT" in ran.stderr
    assert run(submitted_from, "--help").stdout.startswith("usage: sbatch")
    assert run(submitted_from, "prepare", "recipe.yaml").returncode == 2
    assert run(submitted_from, "train", "run.yaml", "out").returncode == 2
