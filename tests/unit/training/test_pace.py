"""Ranks are compared with the middle one, and what changes is said once."""

import math

import pytest

from megaslm.health.pace import Pace
from megaslm.training.pace import Ratios, SlowRanks, compare
from tests.messages import Says

QUICK = Pace(product_seconds=0.01, loading_seconds=0.1, step_seconds=2.0, paused_share=0.0)
FAIR = Ratios(1.0, 1.0, 1.0)


def pace(**changes: float) -> Pace:
    return Pace(**{**vars(QUICK), **changes})


@pytest.mark.parametrize("quick", [1, 2, 3])
def test_the_middle_rank_is_the_measure_of_two_the_quicker(quick: int) -> None:
    """So half of the ranks, those of one host of two for instance, may be slow."""
    found = compare([QUICK] * quick + [pace(product_seconds=0.021)] * quick)
    assert found == [FAIR] * quick + [Ratios(pytest.approx(2.1), 1.0, 1.0)] * quick


def test_one_quick_rank_makes_no_other_slow() -> None:
    assert compare([pace(product_seconds=0.005), QUICK, QUICK])[1:] == [FAIR, FAIR]


def test_loading_counts_by_what_it_makes_of_a_step() -> None:
    """Of a step of 2 s the others load for 0.1 s and wait for the one that loads for 1.1 s; its rest takes 0.9 s."""
    assert compare([QUICK, QUICK, pace(loading_seconds=1.1)])[2] == Ratios(1.0, pytest.approx(2.0), 1.0)
    # Ten times as long as next to nothing is nothing.
    assert compare([QUICK, QUICK, pace(loading_seconds=0.11)])[2].loading == pytest.approx(1.0, abs=0.01)
    assert compare([pace(loading_seconds=0.0, step_seconds=0.0)] * 2) == [FAIR, FAIR]


def test_what_runs_half_of_the_time_needs_twice_as_long() -> None:
    assert compare([QUICK, pace(paused_share=0.5)])[1] == Ratios(1.0, 1.0, pytest.approx(2.0))
    # All of them on hosts with too much to do: none is slower than the others.
    assert compare([pace(paused_share=0.5)] * 3) == [FAIR] * 3
    assert math.isfinite(compare([QUICK, pace(paused_share=1.0)])[1].halts)


def test_a_head_that_was_not_timed_says_nothing() -> None:
    assert compare([pace(product_seconds=math.nan), QUICK]) == [FAIR, FAIR]
    assert compare([pace(product_seconds=math.nan)] * 2) == [FAIR, FAIR]


def test_two_reports_in_a_row_make_a_rank_slow_and_two_make_it_quick_again(says: Says) -> None:
    slow_ranks = SlowRanks(["east", "west"], slow_ratio=1.5, last_step=100)
    slow = Ratios(2.14, 1.0, 1.0)
    heard = [
        slow_ranks.judge(100 + 10 * number, [FAIR, found])
        for number, found in enumerate([slow, FAIR, slow, slow, slow, FAIR, slow, FAIR, FAIR, FAIR, slow], start=1)
    ]
    news = {110 + 10 * place: lines for place, lines in enumerate(heard) if lines}
    assert list(news) == [140, 190]
    (slow_again,), (quick_again,) = news.values()
    says(slow_again, "rank 1", "west", "2.1", "step 121")
    says(quick_again, "rank 1", "west", "step 171")


def test_each_rank_is_judged_on_its_own(says: Says) -> None:
    slow_ranks = SlowRanks(["a", "a", "b", "b"], slow_ratio=1.5, last_step=0)
    by_halts, by_loading = Ratios(1.0, 1.0, 1.5), Ratios(1.0, 1.7, 1.0)
    assert slow_ranks.judge(10, [FAIR, FAIR, by_halts, FAIR]) == []
    (line,) = slow_ranks.judge(20, [FAIR, FAIR, by_halts, by_loading])
    says(line, "rank 2", "b", "1.5")
    (line,) = slow_ranks.judge(30, [FAIR, FAIR, by_halts, by_loading])
    says(line, "rank 3", "1.7", "step 11")
