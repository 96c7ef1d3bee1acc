"""Who is to blame when nothing moves, and what is said of it."""

import pytest

from megaslm.engine.heartbeat import Phase, Position
from megaslm.errors import DataError
from megaslm.health.processes import Process
from megaslm.health.verdict import Heartbeat, Verdict, guilty_of_standstill, on_failure, on_silence, on_standstill
from tests.messages import Says

WAITING = True


def beat(rank: int, point: Phase, step: int, waits: bool = False) -> Heartbeat:
    process = Process(f"node-{rank // 8}", f"boot-{rank // 8}", "pid:[1]", 1000 + rank, 5)
    return Heartbeat(rank, process, Position(point, step, since=100.0), given_at=131.0, waits_for_others=waits)


@pytest.mark.parametrize(
    ("beats", "guilty"),
    [
        ([beat(0, "step", 7, WAITING), beat(1, "data", 7)], [1]),
        ([beat(0, "step", 7), beat(1, "data", 7)], [1]),
        ([beat(0, "data", 7), beat(1, "save", 6)], [1]),
        ([beat(0, "step", 7, WAITING), beat(1, "step", 7)], [1]),
        # The first rank does what is done once, and the others wait for it a little behind.
        ([beat(0, "save", 7), beat(1, "validate", 7, WAITING)], [0]),
        ([beat(0, "data", 7), beat(1, "data", 7), beat(2, "step", 7, WAITING)], [0, 1]),
        ([beat(0, "load", 0)], [0]),
        ([beat(0, "step", 7, WAITING)], [0]),
        # Nothing tells which of them it is.
        ([beat(0, "step", 7, WAITING), beat(1, "step", 7, WAITING)], []),
        ([beat(0, "step", 7, WAITING), beat(1, "data", 7, WAITING)], []),
        ([beat(0, "data", 7), beat(1, "data", 7)], []),
    ],
)
def test_guilty_is_who_is_furthest_behind_of_those_that_do_not_wait(beats: list[Heartbeat], guilty: list[int]) -> None:
    assert [beat.rank for beat in guilty_of_standstill(beats)] == guilty


def test_a_standstill_names_the_guilty_with_its_place(says: Says) -> None:
    verdict = on_standstill([beat(0, "step", 7, WAITING), beat(9, "data", 7)], 31.4, found_by=0)
    says(verdict.finding, "31 s", "rank 9", "node-1", "1009", "'data'", "step 7")
    assert verdict.exit_status == 1
    assert not verdict.unable_to_end


def test_an_undecided_standstill_lists_the_places(says: Says) -> None:
    beats = [beat(rank, "step", 7, WAITING) for rank in range(20)]
    finding = on_standstill(beats, 31.4, found_by=0).finding
    says(finding, *(f"rank {rank} (" for rank in range(16)), "4")
    assert "rank 16" not in finding


def test_who_is_silent_has_to_be_killed(says: Says) -> None:
    silent = beat(9, "data", 7)
    verdict = on_silence([(silent, 60.2)], found_by=0)
    says(verdict.finding, "rank 9 (", "60 s")
    assert verdict.unable_to_end == (silent.process,)
    assert Verdict.decode(verdict.encode().encode()) == verdict


@pytest.mark.parametrize(
    ("error", "said", "status"), [(DataError("broken"), ": broken", 2), (ValueError("odd"), ": ValueError: odd", 1)]
)
def test_a_failure_hands_on_its_message_and_status(error: Exception, said: str, status: int, says: Says) -> None:
    verdict = on_failure(beat(9, "data", 7), error)
    says(verdict.finding, "rank 9", said)
    assert verdict.exit_status == status
    assert verdict.found_by == 9
    assert verdict.grace_seconds > 0
