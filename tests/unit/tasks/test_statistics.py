"""The statistics of results, against enumeration, simulation and known values."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaslm.tasks.statistics import (
    SHARES,
    bootstrap,
    compared,
    interval,
    majority_at_k,
    pass_at_k,
    standard_error,
)


@given(
    st.integers(1, 8).flatmap(lambda n: st.tuples(st.lists(st.booleans(), min_size=n, max_size=n), st.integers(1, n)))
)
def test_pass_at_k_is_the_mean_over_all_draws(drawn: tuple[list[bool], int]) -> None:
    right, k = drawn
    draws = list(itertools.combinations(right, k))
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_refuses_more_than_there_is() -> None:
    for samples, right, k in ((2, 3, 1), (2, 1, 3), (2, 1, 0)):
        with pytest.raises(ValueError):
            pass_at_k(samples, right, k)


def test_a_majority_of_all_samples() -> None:
    assert majority_at_k(["1", "2", "1"], [True, False, True], 3, key=0) == 1
    assert majority_at_k(["1", "2", "2"], [True, False, False], 3, key=0) == 0
    assert majority_at_k(["1", "2"], [True, False], 2, key=0) == 0.5
    assert majority_at_k(["", "", "1"], [False, False, True], 3, key=0) == 1
    assert majority_at_k(["", ""], [False, False], 2, key=0) == 0


def test_a_majority_of_some_samples_is_near_the_mean_over_all_draws() -> None:
    answers, right = ["1", "1", "2", "3", "2"], [True, True, False, False, False]
    draws = list(itertools.combinations(range(5), 3))
    exact = sum(majority_at_k([answers[i] for i in draw], [right[i] for i in draw], 3, key=0) for draw in draws)
    assert majority_at_k(answers, right, 3, key=0) == pytest.approx(exact / len(draws), abs=0.05)
    assert majority_at_k(answers, right, 3, key=0) == majority_at_k(answers, right, 3, key=0)
    assert majority_at_k(answers, right, 3, key=0) != majority_at_k(answers, right, 3, key=1)


def test_the_standard_error_and_the_interval_of_a_share() -> None:
    values = [1.0] * 300 + [0.0] * 700
    assert standard_error(values) == pytest.approx(math.sqrt(0.3 * 0.7 / 999))
    low, high = bootstrap(values)
    assert (low, high) == (
        pytest.approx(0.3 - 1.96 * 0.01449, abs=0.002),
        pytest.approx(0.3 + 1.96 * 0.01449, abs=0.002),
    )
    assert bootstrap(values) == (low, high)
    assert math.isnan(standard_error([1.0]))
    assert math.isnan(bootstrap([]).low)


def test_the_interval_holds_the_true_mean_19_times_of_20() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        low, high = bootstrap(list(generator.binomial(1, 0.4, 200).astype(float)))
        held += low <= 0.4 <= high
    assert 180 <= held <= 199


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson (1927), as in textbooks."""
    z, share = 1.959964, right / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return centre - half, centre + half


@pytest.mark.parametrize("count", [1, 7, 64, 1319])
def test_the_interval_of_equal_shares_is_wilsons(count: int) -> None:
    for right in (0, count):
        assert interval([right / count] * count, SHARES) == pytest.approx(wilson(right, count))
    assert bootstrap([0.0] * count) == (0, 0)


def test_the_interval_of_shares_that_differ_is_that_of_resamples() -> None:
    for values in ([1.0] + [0.0] * 99, [0.5, 0.25]):
        assert interval(values, SHARES) == bootstrap(values)


def test_the_interval_of_rare_events_holds_the_true_mean_19_times_of_20() -> None:
    generator = np.random.default_rng(0)
    # Of 0.02 with 64 items, 27% of all draws hold no right answer.
    drawn = [list(generator.binomial(1, 0.02, 64).astype(float)) for _ in range(400)]
    without = [interval(values, SHARES) for values in drawn if not any(values)]
    assert len(without) > 80
    assert all(low <= 0.02 <= high for low, high in without)


@pytest.mark.parametrize(
    ("first", "second", "expected"), [(1, 1, (-0.0567, 0.0567)), (0, 1, (0.8868, 1)), (0.5, 0.5, (-0.0567, 0.0567))]
)
def test_equal_differences_have_an_interval(first: float, second: float, expected: tuple[float, float]) -> None:
    found = compared([first] * 64, [second] * 64)
    assert found.difference == second - first
    assert found.interval == pytest.approx(expected, abs=1e-4)
    # More items say more.
    wider = compared([first] * 8, [second] * 8).interval
    assert wider.high - wider.low > found.interval.high - found.interval.low


def test_mcnemar() -> None:
    first = [1.0] * 10 + [0.0] * 2 + [1.0] * 50
    second = [0.0] * 10 + [1.0] * 2 + [1.0] * 50
    found = compared(first, second)
    # Two-sided binomial test of 2 in 12: 2 · (1 + 12 + 66) / 4096.
    assert found.p_value == pytest.approx(2 * 79 / 4096)
    assert (found.only_first, found.only_second) == (10, 2)
    assert found.difference == pytest.approx(-8 / 62)
    assert found.interval.low < found.difference < found.interval.high < 0
    assert compared(first, first).p_value == 1
