"""The limits by which the watchdog judges, on a clock that the test sets."""

from types import SimpleNamespace
from typing import cast

import pytest
import torch

from megaslm.engine.distributed import World
from megaslm.engine.heartbeat import Position
from megaslm.health.heartbeats import HeartbeatThread, HeartbeatTracker
from megaslm.health.processes import Process
from megaslm.health.verdict import Heartbeat, on_silence, on_standstill
from megaslm.health.watchdog import Watchdog

SILENCE_SECONDS, HANG_SECONDS = 60.0, 30.0


def watchdog_of(rank: int, heard: list[Heartbeat]) -> Watchdog:
    """Of one of two ranks, which has heard these beats; without a thread and a store."""
    watchdog = Watchdog(World(rank, 2, torch.device("cpu")), silence_seconds=SILENCE_SECONDS, hang_seconds=HANG_SECONDS)
    heartbeats = SimpleNamespace(heard=heard, dead=[], first_rank_is_lost=False)
    watchdog._heartbeats = cast(HeartbeatThread, heartbeats)
    return watchdog


def beat(rank: int, given_at: float) -> Heartbeat:
    process = Process("node", "boot", "pid:[1]", 1000 + rank, 5)
    return Heartbeat(rank, process, Position("step", 7, since=0.0), given_at)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_is_silent_after_the_limit_and_not_before(rank: int) -> None:
    """The first rank judges the others, and they judge the first."""
    heard = [beat(0, 0.0), beat(1, 0.0)] if rank == 0 else [beat(0, 0.0)]
    watchdog, tracker = watchdog_of(rank, heard), HeartbeatTracker()
    tracker.hear(heard, now=0.0)
    if rank == 0:
        tracker.hear([beat(0, 55.0)], now=55.0)
    assert watchdog._finding(tracker, SILENCE_SECONDS) is None
    silent = [(beat(1 - rank, 0.0), SILENCE_SECONDS + 0.1)]
    assert watchdog._finding(tracker, SILENCE_SECONDS + 0.1) == on_silence(silent, rank)


def test_ranks_that_beat_and_do_not_move_hang_after_the_limit_and_not_before() -> None:
    heard = [beat(0, 29.0), beat(1, 29.0)]
    watchdog, tracker = watchdog_of(0, heard), HeartbeatTracker()
    tracker.hear([beat(0, 0.0), beat(1, 0.0)], now=0.0)
    tracker.hear(heard, now=29.0)
    assert watchdog._finding(tracker, HANG_SECONDS) is None
    assert watchdog._finding(tracker, HANG_SECONDS + 0.1) == on_standstill(heard, HANG_SECONDS + 0.1, 0)
