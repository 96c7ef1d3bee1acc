"""A scheduler that changes its mind: the job is told to stop while Python is still loading what it needs."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from megaslm.config.schema import RunConfig
from tests.faults.figures import Figures
from tests.faults.runs import STEPS, Material, records, steps_made, weights_sha256
from tests.forks import wait_until
from tests.launched import ROOT
from tests.toy import write_config

SECONDS_AFTER_ITS_BEGINNING = (0.0, 4.0)
"""The first is as soon as the command listens to signals; importing what it needs takes longer than the last."""


@contextmanager
def commands(config: RunConfig, output: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """`megaslm train --resume` on two ranks, as a launcher starts it; ended with the context."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "megaslm", "train", write_config(output.with_suffix(".yaml"), config), "--resume"]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with output.open("ab") as log:
        ranks = [
            subprocess.Popen(
                command,
                env={
                    **os.environ,
                    **shared,
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "OMP_NUM_THREADS": "1",
                    "PYTHONPATH": str(ROOT),
                },
                stdout=log,
                stderr=log,
            )
            for rank in (0, 1)
        ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def listens(process: subprocess.Popen[bytes]) -> bool:
    """Whether the command has its own answer to SIGTERM."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    (caught,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    return bool(caught & 1 << (signal.SIGTERM - 1))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_that_is_told_at_its_very_beginning_can_be_started_again(
    material: Material, undisturbed: str, figures: Figures, tmp_path: Path
) -> None:
    config, output = material.config(tmp_path / "run"), tmp_path / "output.txt"
    for seconds in SECONDS_AFTER_ITS_BEGINNING:
        with commands(config, output) as ranks:
            for rank in ranks:
                wait_until(partial(listens, rank))
            time.sleep(seconds)
            for rank in ranks:
                rank.send_signal(signal.SIGTERM)
            assert [rank.wait(timeout=120) for rank in ranks] == [75, 75], output.read_text()
    with commands(config, output) as ranks:
        assert [rank.wait(timeout=120) for rank in ranks] == [0, 0], output.read_text()
    made = steps_made(output.read_text())
    assert made == list(range(1, STEPS + 1)) == [record["step"] for record in records(config)]
    assert weights_sha256(config) == undisturbed
    figures.record("sigterm", term_early=len(made) - STEPS)
