"""What runs leave that are killed with all their processes goes with the next one; neighbours keep what they have."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks import ROOT


@pytest.mark.slow
def test_twenty_kills_leave_nothing_and_neighbours_keep_what_is_theirs(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    ran = subprocess.run(
        [sys.executable, "-m", "tests.integration.killed_streams_worker", str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["killed_after_opening"] >= 7
    assert found["left_by_kills"] > 0
    assert found["clean_run_statuses"] == [0, 0], ran.stderr
    assert found["left_at_the_end"] == []
    assert found["taken_from_neighbours"] == []
    # A program without a lease leaves its lock files, as streaming does.
    assert sorted(name.partition("_")[2] for name in found["lock_files"]) == ["barrier_filelock", "cache_filelock"]
