"""The script of a Slurm array, tried with what Slurm sets and a `megaslm` that prints what it was asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "launcher" / "prepare_array.sh"


@pytest.fixture
def submitted_from(tmp_path: Path) -> Path:
    """A folder whose `megaslm` prints its arguments; `python -m` looks there first."""
    (tmp_path / "megaslm").mkdir()
    (tmp_path / "megaslm" / "__init__.py").touch()
    (tmp_path / "megaslm" / "__main__.py").write_text("import sys; print(*sys.argv[1:])", encoding="utf-8")
    return tmp_path


def run(folder: Path, *arguments: str, **slurm: int) -> "subprocess.CompletedProcess[str]":
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, **{f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in slurm.items()}}
    return subprocess.run(
        [str(SCRIPT), *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("task", "least", "most", "part"), [(1, 1, 4, "1/4"), (4, 1, 4, "4/4"), (0, 0, 9, "1/10")])
def test_a_task_of_the_array_does_its_share(submitted_from: Path, task: int, least: int, most: int, part: str) -> None:
    ran = run(submitted_from, "a recipe.yaml", "out", "--workers", "3", ID=task, MIN=least, MAX=most)
    assert ran.stdout.strip() == f"prepare a recipe.yaml out --workers 3 --part {part}", ran.stderr


def test_outside_of_an_array_it_says_how_to_submit_it(submitted_from: Path) -> None:
    ran = run(submitted_from, "recipe.yaml", "out")
    assert ran.returncode == 2
    assert "sbatch --array=1-COUNT" in ran.stderr
    assert run(submitted_from, "--help").stdout.startswith("usage: sbatch")
    assert run(submitted_from, "recipe.yaml").returncode == 2
