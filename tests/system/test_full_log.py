"""A disk without room for a run's log: the run continues, says so, and writes what is missing when there is room."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.launched import ROOT
from tests.messages import Says, lines_with
from tests.system import full_log_worker
from tests.system.full_log_worker import STEPS

NAMESPACE = ("unshare", "--map-root-user", "--mount")
SMALL_DISK = """
mount -t tmpfs -o size=96k tmpfs "$1/disk" || exit 99
"$2" "$3" "$1/disk" "$4" > "$1/disk/stdout"; echo "status $?"
cp -r "$1/disk" "$1/copy"
"""


def log_on_a_small_disk(folder: Path, fate: str) -> "subprocess.CompletedProcess[str]":
    """Writes STEPS steps, for which the disk is too small; what is on it then is in `folder`/copy."""
    if subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False, timeout=20).returncode != 0:
        pytest.skip("this user may not mount a file system in a namespace")
    (folder / "disk").mkdir()
    worker = full_log_worker.__file__
    return subprocess.run(
        [*NAMESPACE, "sh", "-c", SMALL_DISK, "sh", str(folder), sys.executable, str(worker), fate],
        cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def steps_in(metrics: Path) -> list[int]:
    return [json.loads(line)["step"] for line in metrics.read_text().splitlines()]


def steps_shown(tensorboard: Path) -> list[int]:
    return [event.step for event in EventAccumulator(str(tensorboard)).Reload().Scalars("loss/selected")]


def test_nothing_is_missing_once_there_is_room(tmp_path: Path) -> None:
    result = log_on_a_small_disk(tmp_path, "mended")
    assert result.stdout == "status 0\n", result.stderr
    assert steps_in(tmp_path / "copy" / "metrics.jsonl") == list(range(1, STEPS + 1))
    assert steps_shown(tmp_path / "copy" / "tensorboard") == list(range(1, STEPS + 1))
    complaints = result.stderr.splitlines()
    disk = tmp_path / "disk"
    for name in (disk / "metrics.jsonl", disk / "tensorboard", "the console"):
        (complaint,) = [line for line in complaints if line.startswith(f"warning: {name}: ")]
        assert os.strerror(errno.ENOSPC) in complaint


def test_on_a_disk_that_stays_full_what_is_written_is_whole(tmp_path: Path, says: Says) -> None:
    result = log_on_a_small_disk(tmp_path, "full")
    assert result.stdout == "status 0\n", result.stderr
    for steps in (steps_in(tmp_path / "copy" / "metrics.jsonl"), steps_shown(tmp_path / "copy" / "tensorboard")):
        assert 0 < len(steps) < STEPS
        assert steps == list(range(1, len(steps) + 1))
    told = lines_with(result.stderr, "warning: ", tmp_path / "disk" / "metrics.jsonl")
    says.without_numbers(told[-1])
