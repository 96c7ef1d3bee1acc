"""Who is to blame when nothing moves, and what is said of it."""

import pytest

from megaslm.engine.places import Place, Point
from megaslm.errors import DataError
from megaslm.health.processes import Process
from megaslm.health.verdict import Sign, Verdict, guilty_of_standstill, on_failure, on_silence, on_standstill
from tests.messages import Says

WAITING = True


def sign(rank: int, point: Point, step: int, waits: bool = False) -> Sign:
    process = Process(f"node-{rank // 8}", f"boot-{rank // 8}", "pid:[1]", 1000 + rank, 5)
    return Sign(rank, process, Place(point, step, since=100.0), given_at=131.0, waits_for_others=waits)


@pytest.mark.parametrize(
    ("signs", "guilty"),
    [
        ([sign(0, "step", 7, WAITING), sign(1, "data", 7)], [1]),
        ([sign(0, "step", 7), sign(1, "data", 7)], [1]),
        ([sign(0, "data", 7), sign(1, "save", 6)], [1]),
        ([sign(0, "step", 7, WAITING), sign(1, "step", 7)], [1]),
        # The first rank does what is done once, and the others wait for it a little behind.
        ([sign(0, "save", 7), sign(1, "validate", 7, WAITING)], [0]),
        ([sign(0, "data", 7), sign(1, "data", 7), sign(2, "step", 7, WAITING)], [0, 1]),
        ([sign(0, "load", 0)], [0]),
        ([sign(0, "step", 7, WAITING)], [0]),
        # Nothing tells which of them it is.
        ([sign(0, "step", 7, WAITING), sign(1, "step", 7, WAITING)], []),
        ([sign(0, "step", 7, WAITING), sign(1, "data", 7, WAITING)], []),
        ([sign(0, "data", 7), sign(1, "data", 7)], []),
    ],
)
def test_guilty_is_who_is_furthest_behind_of_those_that_do_not_wait(signs: list[Sign], guilty: list[int]) -> None:
    assert [sign.rank for sign in guilty_of_standstill(signs)] == guilty


def test_a_standstill_names_the_guilty_with_its_place(says: Says) -> None:
    verdict = on_standstill([sign(0, "step", 7, WAITING), sign(9, "data", 7)], 31.4, found_by=0)
    says(verdict.finding, "31 s", "rank 9", "node-1", "1009", "'data'", "step 7")
    assert verdict.exit_status == 1
    assert not verdict.unable_to_end


def test_an_undecided_standstill_lists_the_places(says: Says) -> None:
    signs = [sign(rank, "step", 7, WAITING) for rank in range(20)]
    finding = on_standstill(signs, 31.4, found_by=0).finding
    says(finding, *(f"rank {rank} (" for rank in range(16)), "4")
    assert "rank 16" not in finding


def test_who_is_silent_has_to_be_killed(says: Says) -> None:
    silent = sign(9, "data", 7)
    verdict = on_silence([(silent, 60.2)], found_by=0)
    says(verdict.finding, "rank 9 (", "60 s")
    assert verdict.unable_to_end == (silent.process,)
    assert Verdict.decode(verdict.encode().encode()) == verdict


@pytest.mark.parametrize(
    ("error", "said", "status"), [(DataError("broken"), ": broken", 2), (ValueError("odd"), ": ValueError: odd", 1)]
)
def test_a_failure_hands_on_its_message_and_status(error: Exception, said: str, status: int, says: Says) -> None:
    verdict = on_failure(sign(9, "data", 7), error)
    says(verdict.finding, "rank 9", said)
    assert verdict.exit_status == status
    assert verdict.found_by == 9
    assert verdict.grace_seconds > 0
