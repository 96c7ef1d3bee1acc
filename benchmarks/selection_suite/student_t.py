"""Means over seeds with their uncertainty, and paired comparisons, by Student's t distribution."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from mpmath import betainc, findroot


class Mean(NamedTuple):
    """The mean of some values, their standard deviation, and the 95% interval of the mean; None where there are too
    few values."""

    mean: float | None
    deviation: float | None
    low: float | None
    high: float | None
    values: int


class Paired(NamedTuple):
    """The mean difference of pairs, first minus second, and the two-sided p-value of no difference."""

    difference: Mean
    p_value: float | None
    """None for less than two pairs, or pairs that all differ by the same."""


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of values that are taken for draws of a normal distribution."""
    count = len(values)
    if count == 0:
        return Mean(None, None, None, None, 0)
    mean = statistics.fmean(values)
    if count == 1:
        return Mean(mean, None, None, None, 1)
    deviation = statistics.stdev(values)
    half = quantile(0.975, count - 1) * deviation / math.sqrt(count)
    return Mean(mean, deviation, mean - half, mean + half, count)


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Compares two lists of values of the same seeds, in the same order, by the paired t-test."""
    differences = [one - other for one, other in zip(first, second, strict=True)]
    found = mean_of(differences)
    if not found.deviation or found.mean is None:
        return Paired(found, None)
    t = abs(found.mean) / (found.deviation / math.sqrt(len(differences)))
    return Paired(found, 1 - within(t, len(differences) - 1))


def slope_of(points: Sequence[tuple[float, float]]) -> Mean:
    """The slope of the least-squares line through points (x, y), its standard error as the deviation, and its 95%
    interval; None where there are too few points, or all have one x."""
    count = len(points)
    if len({x for x, _ in points}) < 2:
        return Mean(None, None, None, None, count)
    slope, intercept = statistics.linear_regression(*zip(*points, strict=True))
    if count < 3:
        return Mean(slope, None, None, None, count)
    middle = statistics.fmean(x for x, _ in points)
    residuals = sum((y - intercept - slope * x) ** 2 for x, y in points)
    error = math.sqrt(residuals / (count - 2) / sum((x - middle) ** 2 for x, _ in points))
    half = quantile(0.975, count - 2) * error
    return Mean(slope, error, slope - half, slope + half, count)


def within(t: float, degrees: int) -> float:
    """The probability that |T| ≤ t for `degrees` ≥ 1 degrees of freedom."""
    return 1 - float(betainc(degrees / 2, 0.5, 0, degrees / (degrees + t * t), regularized=True))


def quantile(probability: float, degrees: int) -> float:
    """The value that T exceeds with 1 - `probability`, for a probability from above 0.5 to below 1."""
    most = 1.0
    while within(most, degrees) < 2 * probability - 1:
        most *= 2
    return float(findroot(lambda t: within(float(t), degrees) - (2 * probability - 1), (0.0, most), solver="anderson"))
