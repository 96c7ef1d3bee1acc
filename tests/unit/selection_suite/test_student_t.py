"""Means, intervals and paired tests, against numbers from tables and by hand."""

import math

import pytest

from benchmarks.selection_suite.student_t import mean_of, paired, quantile, slope_of, within


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (10, 2.2281), (30, 2.0423)],
)
def test_the_quantiles_are_those_of_the_tables(degrees: int, expected: float) -> None:
    assert quantile(0.975, degrees) == pytest.approx(expected, abs=5e-5)
    assert within(quantile(0.995, degrees), degrees) == pytest.approx(0.99)


def test_one_and_two_degrees_of_freedom_have_closed_forms() -> None:
    assert within(1.0, 1) == pytest.approx(0.5)
    assert within(1.5, 2) == pytest.approx(1.5 / math.sqrt(1.5**2 + 2))


def test_a_mean_has_its_interval() -> None:
    found = mean_of([1.0, 2.0, 3.0, 4.0])
    # s² = 5/3, and 3.1824 · sqrt(5/3) / 2 = 2.0543.
    assert (found.mean, found.values) == (2.5, 4)
    assert found.deviation == pytest.approx(math.sqrt(5 / 3))
    assert (found.low, found.high) == (pytest.approx(0.4457, abs=1e-4), pytest.approx(4.5543, abs=1e-4))
    assert mean_of([3.0]) == (3.0, None, None, None, 1)
    assert mean_of([]) == (None, None, None, None, 0)


def test_pairs_are_compared_by_their_differences() -> None:
    found = paired([1.0, 2.0, 3.5], [0.5, 1.2, 3.3])
    # Differences 0.5, 0.8, 0.2: mean 0.5, s = 0.3, t = 2.8868; with two degrees p = 1 - t / sqrt(t² + 2) = 0.10197.
    assert found.difference.mean == pytest.approx(0.5)
    assert found.p_value == pytest.approx(0.10197, abs=1e-5)
    assert paired([1.0], [2.0]).p_value is None
    assert paired([1.0, 2.0], [2.0, 3.0]).p_value is None


def test_a_slope_has_its_interval() -> None:
    found = slope_of([(0.0, 1.0), (1.0, 3.0), (2.0, 4.0)])
    # By hand: slope 1.5, residuals -1/6, 1/3, -1/6, so s² = 1/6 and the error sqrt(1/12); 12.7062 for one degree.
    assert found.mean == pytest.approx(1.5)
    assert found.deviation == pytest.approx(math.sqrt(1 / 12))
    assert found.low == pytest.approx(1.5 - 12.7062 * math.sqrt(1 / 12), abs=1e-4)
    assert slope_of([(0.0, 1.0), (1.0, 3.0)])[:3] == (2.0, None, None)
    assert slope_of([(1.0, 1.0), (1.0, 3.0)]).mean is None
