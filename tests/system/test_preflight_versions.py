"""Hosts that have not one version of the code, in real processes, each with its copy."""

import shutil
import socket
from pathlib import Path

import pytest

import megaslm
from tests.launched import run_ranks
from tests.toy import make_dataset, run_config, write_config

HOST = socket.gethostname()
ODD = 2
WORLD_SIZE = 3


@pytest.mark.slow
def test_another_version_of_the_code(tmp_path: Path) -> None:
    """A copy with one byte more, as on a host that was left out of an update; in real processes, with real output."""
    make_dataset(tmp_path / "tokens", {("train", "a"): [20, 15]})
    for host in ("usual", "odd"):
        shutil.copytree(Path(megaslm.__file__).parent, tmp_path / host / "megaslm")
    with (tmp_path / "odd" / "megaslm" / "slm" / "choice.py").open("a") as file:
        file.write("\n")
    start = (
        "import os, runpy, sys; "
        f"sys.path.insert(0, {str(tmp_path)!r} + ('/odd' if os.environ['RANK'] == '{ODD}' else '/usual')); "
        "runpy.run_module('megaslm', run_name='__main__', alter_sys=True)"
    )
    config = write_config(tmp_path / "run.yaml", run_config(tmp_path / "run", tmp_path / "tokens"))
    output = run_ranks(WORLD_SIZE, ["-c", start, "train", str(config)], cwd=tmp_path, expect_status=2)
    (line,) = [line for line in output.splitlines() if "megaslm's code" in line]
    assert line.startswith(f"  rank {ODD} on {HOST}: ")
    assert "0.1.0 (" in line
    assert output.count("PreflightError: ") == 1
