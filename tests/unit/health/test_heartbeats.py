"""Who was heard when."""

from dataclasses import replace

import pytest

from megaslm.engine.heartbeat import Position
from megaslm.health import heartbeats as heartbeats
from megaslm.health.heartbeats import AwakeClock, HeartbeatTracker
from megaslm.health.processes import Process
from megaslm.health.verdict import Heartbeat

LIMIT_SECONDS = 60.0


def beat(rank: int, given_at: float, *, since: float = 0.0, is_last: bool = False) -> Heartbeat:
    process = Process("node", "boot", "pid:[1]", 1000 + rank, 5)
    return Heartbeat(rank, process, Position("step", 7, since), given_at, is_last=is_last)


def silent_ranks(tracker: HeartbeatTracker, now: float) -> list[int]:
    return [beat.rank for beat, _ in tracker.silent(now, LIMIT_SECONDS)]


def test_a_sign_reads_back_as_it_was() -> None:
    given = replace(beat(3, 1234.56789012345, since=0.1 + 0.2), waits_for_others=True)
    assert Heartbeat.decode(given.encode().encode()) == given


def test_silent_is_whose_sign_stays_the_same() -> None:
    tracker = HeartbeatTracker()
    tracker.hear([beat(0, 500.0), beat(1, 2.0)], now=10.0)
    tracker.hear([beat(0, 530.0), beat(1, 2.0)], now=40.0)
    assert silent_ranks(tracker, 70.0) == []
    assert tracker.silent(70.5, LIMIT_SECONDS) == [(beat(1, 2.0), 60.5)]


def test_a_rank_is_waited_for_from_its_first_sign_to_its_goodbye() -> None:
    tracker = HeartbeatTracker()
    tracker.hear([beat(0, 1.0)], now=0.0)
    tracker.hear([beat(0, 2.0), beat(1, 1.0), beat(2, 1.0)], now=100.0)
    tracker.hear([beat(0, 3.0), beat(1, 1.0), beat(2, 2.0, is_last=True)], now=159.0)
    assert silent_ranks(tracker, 159.0) == []
    assert silent_ranks(tracker, 161.0) == [1]
    assert [beat.rank for beat in tracker.present] == [0, 1]


def test_a_standstill_is_over_when_one_moves() -> None:
    tracker = HeartbeatTracker()
    tracker.hear([beat(0, 1.0), beat(1, 1.0)], now=0.0)
    tracker.hear([beat(0, 2.0), beat(1, 2.0)], now=50.0)
    assert tracker.seconds_at_a_standstill(50.0) == 50.0
    # The same point of the same step, come to again.
    tracker.hear([beat(0, 3.0), beat(1, 3.0, since=2.5)], now=60.0)
    assert tracker.seconds_at_a_standstill(65.0) == 5.0


def test_a_goodbye_is_a_movement() -> None:
    tracker = HeartbeatTracker()
    tracker.hear([beat(0, 1.0), beat(1, 1.0)], now=0.0)
    tracker.hear([beat(0, 50.0), beat(1, 50.0, is_last=True)], now=50.0)
    assert tracker.seconds_at_a_standstill(53.0) == 3.0


def test_of_512_ranks_the_silent_ones_are_found() -> None:
    tracker = HeartbeatTracker()
    for second in range(100):
        texts = [
            beat(rank, float(20 if rank in (17, 511) and second > 20 else second)).encode().encode()
            for rank in range(512)
        ]
        tracker.hear(map(Heartbeat.decode, texts), now=float(second))
    assert silent_ranks(tracker, 99.0) == [17, 511]


def test_time_in_which_the_process_was_suspended_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(heartbeats.time, "monotonic", lambda: now)
    clock = AwakeClock()
    now += 0.5
    assert clock.tick() == 0.5
    now += 3600
    assert clock.tick() == 1.5
