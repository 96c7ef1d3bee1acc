"""A loader process that hangs: its rank is named, and the run continues from its last checkpoint."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.faults.figures import Figures
from tests.faults.host import is_alive
from tests.faults.runs import Material, records, run_ranks, start_ranks, weights_sha256
from tests.forks import statuses_of, wait_until
from tests.messages import lines_with

HANG_SECONDS = 5.0
# As megaslm/health/watchdog.py has it.
ENDED_WITHIN_SECONDS = 3.0
STEPS = 80


@pytest.mark.slow
def test_the_rank_of_a_hung_loader_is_named(
    material: Material, figures: Figures, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    guard, data = {"hang_seconds": HANG_SECONDS}, {"loader_workers": 1}
    hung, undisturbed = (
        material.config(tmp_path / name, steps=STEPS, guard=guard, data=data) for name in ("hung", "undisturbed")
    )
    ranks = start_ranks(hung)
    metrics = Path(hung.run_dir) / "metrics.jsonl"
    wait_until(lambda: metrics.is_file() and len(records(hung)) >= 5)
    rank = psutil.Process(ranks[1])
    # The other child, which keeps an eye on shared memory, is a program of its own.
    (loader,) = (child for child in rank.children() if child.cmdline() == rank.cmdline())
    os.kill(loader.pid, signal.SIGSTOP)
    stopped_at = time.time()
    assert statuses_of(ranks) == [1, 1]
    seconds = time.time() - stopped_at
    said = capfd.readouterr().err
    assert lines_with(said, "rank 1 (", "'data'"), said
    wait_until(lambda: not is_alive(loader.pid))
    assert seconds < HANG_SECONDS + ENDED_WITHIN_SECONDS
    assert len(records(hung)) < STEPS
    assert run_ranks(hung) == [0, 0]
    assert run_ranks(undisturbed) == [0, 0]
    assert weights_sha256(hung) == weights_sha256(undisturbed)
    figures.record("watchdog", loader_seconds=seconds, loader_limit_seconds=HANG_SECONDS + ENDED_WITHIN_SECONDS)
