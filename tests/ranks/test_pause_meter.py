"""What the host takes from a process is told apart from what the process does."""

import os
import signal
import time
from pathlib import Path

import torch

from megaslm.health.pace import PauseMeter
from tests.forks import fork, statuses_of, wait_until


def test_a_process_that_is_stopped_half_of_the_time_knows_it(tmp_path: Path) -> None:
    def work() -> None:
        meter = PauseMeter()
        (tmp_path / "begun").touch()
        wait_until((tmp_path / "over").exists)
        (tmp_path / "share").write_text(str(meter.paused_share()))

    process = fork(work)
    wait_until((tmp_path / "begun").exists)
    begun_at, stopped_seconds = time.monotonic(), 0.0
    for _ in range(10):
        os.kill(process, signal.SIGSTOP)
        stopped_at = time.monotonic()
        time.sleep(0.1)
        os.kill(process, signal.SIGCONT)
        stopped_seconds += time.monotonic() - stopped_at
        time.sleep(0.1)
    share = stopped_seconds / (time.monotonic() - begun_at)
    (tmp_path / "over").touch()
    assert statuses_of([process]) == [0]
    assert abs(float((tmp_path / "share").read_text()) - share) < 0.15


def test_work_and_waiting_are_no_halts() -> None:
    meter = PauseMeter()
    matrix = torch.ones(256, 256)
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        matrix = (matrix @ matrix).clamp(max=1.0)
        sum(range(1000))
    time.sleep(0.5)
    assert meter.paused_share() < 0.25
    meter.stop()


def test_it_begins_anew_when_it_was_asked() -> None:
    meter = PauseMeter()
    meter._paused_seconds = 5.0
    assert meter.paused_share() == 1.0
    assert meter.paused_share() == 0.0
    meter.stop()
