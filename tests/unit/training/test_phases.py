"""Phases add up to the step, and the time between steps belongs to none."""

import time

import pytest
import torch

from megaslm.training.phases import PhaseClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> PhaseClock:
    """Its marks are the powers of two: every set of intervals has another sum."""
    marks = iter(2.0**power for power in range(20))
    monkeypatch.setattr(time, "perf_counter", lambda: next(marks))
    return PhaseClock(torch.device("cpu"))


def test_a_phase_is_the_time_since_the_last_mark(clock: PhaseClock) -> None:
    for _ in range(2):
        clock.mark(None)
        clock.mark("data_wait")
        clock.mark("forward")
        clock.mark("backward")
        clock.mark("forward")
    # Marks 1, 2, 4, 8, 16 and 32, 64, 128, 256, 512.
    assert clock.read() == {"data_wait": 1 + 32, "forward": 2 + 8 + 64 + 256, "backward": 4 + 128}


def test_what_was_read_is_not_read_again(clock: PhaseClock) -> None:
    clock.mark(None)
    clock.mark("forward")
    assert clock.read() == {"forward": 1.0}
    assert clock.read() == {}
    clock.mark(None)
    clock.mark("backward")
    assert clock.read() == {"backward": 4.0}
