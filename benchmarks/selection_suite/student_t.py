"""Means over seeds with their uncertainty, and paired comparisons, by Student's t distribution.

The distribution function of whole degrees of freedom is a finite sum (Abramowitz and Stegun, Handbook of Mathematical
Functions, 26.7.3 and 26.7.4), so that no library is needed.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


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


def within(t: float, degrees: int) -> float:
    """The probability that |T| ≤ t for `degrees` ≥ 1 degrees of freedom."""
    angle = math.atan2(t, math.sqrt(degrees))
    cosine, term, total = math.cos(angle), 1.0, 0.0
    if degrees % 2:
        for power in range(1, degrees - 1, 2):
            total += term * cosine**power
            term *= (power + 1) / (power + 2)
        return 2 / math.pi * (angle + math.sin(angle) * total)
    for power in range(0, degrees - 1, 2):
        total += term * cosine**power
        term *= (power + 1) / (power + 2)
    return math.sin(angle) * total


def quantile(probability: float, degrees: int) -> float:
    """The value that T exceeds with 1 - `probability`, for a probability from 0.5 to below 1."""
    low, high = 0.0, 1.0
    while within(high, degrees) < 2 * probability - 1:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, degrees) < 2 * probability - 1 else (low, middle)
    return high
