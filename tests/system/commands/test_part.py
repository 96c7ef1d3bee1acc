"""launcher/k8s/part.sh, tried with what Kubernetes sets and a `megaslm` that prints what it was asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "launcher" / "k8s" / "part.sh"


@pytest.fixture
def pod(tmp_path: Path) -> Path:
    """A folder whose `megaslm` prints its arguments; `python -m` looks there first."""
    (tmp_path / "megaslm").mkdir()
    (tmp_path / "megaslm" / "__init__.py").touch()
    (tmp_path / "megaslm" / "__main__.py").write_text("import sys; print(sys.argv[1:])", encoding="utf-8")
    return tmp_path


def run(folder: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **variables}
    return subprocess.run(
        [str(SCRIPT), *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("index", "part"), [("0", "1/12"), ("8", "9/12"), ("11", "12/12")])
def test_a_pod_does_its_part(pod: Path, index: str, part: str) -> None:
    ran = run(pod, "12", "prepare", "a $(recipe).yaml", "out's", JOB_COMPLETION_INDEX=index)
    assert ran.stdout == repr(["prepare", "a $(recipe).yaml", "out's", "--share", part]) + "\n"
    assert ran.returncode == 0, ran.stderr


def test_scoring_is_started_in_ranks(pod: Path) -> None:
    launcher = pod / "launcher"
    (launcher / "k8s").mkdir(parents=True)
    (launcher / "local.sh").write_text('#!/bin/sh\necho "$RANKS" "$@"\n', encoding="utf-8")
    (launcher / "local.sh").chmod(0o755)
    copy = launcher / "k8s" / "part.sh"
    copy.write_bytes(SCRIPT.read_bytes())
    copy.chmod(0o755)
    environment = {**os.environ, "JOB_COMPLETION_INDEX": "3", "RANKS": "8"}
    ran = subprocess.run(
        [str(copy), "4", "score", "in", "out"], cwd=pod, env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "8 score in out --share 4/4\n"


@pytest.mark.parametrize("index", ["", "-1", "a[$(touch pwned)]", "1 2"])
def test_an_index_is_a_number(pod: Path, index: str) -> None:
    ran = run(pod, "4", "prepare", "recipe.yaml", "out", JOB_COMPLETION_INDEX=index)
    assert ran.returncode == 2
    assert ran.stderr.startswith("JOB_COMPLETION_INDEX = ")
    assert not (pod / "pwned").exists()


@pytest.mark.parametrize("arguments", [(), ("4", "prepare"), ("four", "prepare", "r", "o"), ("4", "train", "r", "o")])
def test_what_it_cannot_do_it_says(pod: Path, arguments: tuple[str, ...]) -> None:
    ran = run(pod, *arguments, JOB_COMPLETION_INDEX="0")
    assert ran.returncode == 2
    assert "launcher/k8s/part.sh" in ran.stderr
