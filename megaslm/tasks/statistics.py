"""Accuracies with their uncertainty: standard errors, bootstrap intervals, pass@k, votes, paired comparisons."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 10_000
_VOTES = 1_000
_SEED = 20_240_411
_NORMAL_97_5_PERCENT = 1.959964


class Interval(NamedTuple):
    """A 95% interval, or a range."""

    low: float
    high: float


SHARES = Interval(0.0, 1.0)
"""The range of a share of right answers."""
_DIFFERENCES = Interval(-1.0, 1.0)


def standard_error(values: Sequence[float]) -> float:
    """The standard error of a mean; NaN for less than two values."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def bootstrap(values: Sequence[float]) -> Interval:
    """The 95% interval of a mean by the percentiles of resampled means; equal for equal values. NaN without values."""
    if not values:
        return Interval(math.nan, math.nan)
    return Interval(*(float(bound) for bound in np.percentile(_resampled(np.asarray(values, float)), (2.5, 97.5))))


def interval(values: Sequence[float], possible: Interval) -> Interval:
    """The 95% interval of a mean of values in the range `possible`: that of `bootstrap`, unless all values are equal.

    Resamples of n equal values do not differ. Another value may still have gone unseen, with a probability of at most
    z² / (n + z²): Wilson's upper bound (1927) for 0 of n. The interval holds all means that this leaves possible. For
    shares of 0 and 1 it is Wilson's.
    """
    if len(set(values)) != 1:
        return bootstrap(values)
    unseen = _NORMAL_97_5_PERCENT**2 / (len(values) + _NORMAL_97_5_PERCENT**2)
    low, high = ((1 - unseen) * values[0] + unseen * other for other in possible)
    return Interval(low, high)


def _resampled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    generator = np.random.default_rng(_SEED)
    # A few values occur many times, so that their counts are drawn in place of the values.
    distinct, counts = np.unique(values, return_counts=True)
    drawn = generator.multinomial(len(values), counts / len(values), size=_RESAMPLES)
    means: NDArray[np.float64] = drawn @ distinct / len(values)
    return means


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The probability that one of k samples is right, unbiased (Chen et al. 2021, arXiv 2107.03374, equation 1).

    Raises:
        ValueError: not 0 ≤ right ≤ samples, or not 1 ≤ k ≤ samples.
    """
    if not (0 <= right <= samples and 1 <= k <= samples):
        raise ValueError(f"samples = {samples}, right = {right}, k = {k}: need right ≤ samples and 1 ≤ k ≤ samples")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def majority_at_k(answers: Sequence[str], right: Sequence[bool], k: int, *, key: int) -> float:
    """The probability that the most frequent answer of k samples is right, over draws of k of the samples.

    Empty answers do not vote. Answers that tie share the vote. With k samples there is one draw; with more the mean of
    1,000 draws, seeded by `key`.
    """
    if not 1 <= k <= len(answers):
        raise ValueError(f"k = {k}: need 1 ≤ k ≤ {len(answers)} samples")
    if k == len(answers):
        return _share_of_right(answers, right, range(k))
    generator = np.random.default_rng([_SEED, key])
    draws = (generator.choice(len(answers), k, replace=False) for _ in range(_VOTES))
    return float(np.mean([_share_of_right(answers, right, draw) for draw in draws]))


def _share_of_right(answers: Sequence[str], right: Sequence[bool], drawn: Sequence[int] | NDArray[np.int64]) -> float:
    votes = Counter(answers[place] for place in drawn if answers[place])
    if not votes:
        return 0.0
    most = max(votes.values())
    first = [answer for answer, count in votes.items() if count == most]
    is_right = {answers[place] for place in drawn if right[place]}
    return sum(answer in is_right for answer in first) / len(first)


class Comparison(NamedTuple):
    """Two results on the same items. `difference`: of the means, second minus first, with its 95% interval.

    `p_value`: two-sided, of McNemar's exact test on the items that one of the two alone has right.
    """

    difference: float
    interval: Interval
    only_first: int
    only_second: int
    p_value: float


def compared(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Compares two lists of scores of the same items, in the same order.

    McNemar's test counts an item for the result with the larger score.
    """
    differences = [two - one for one, two in zip(first, second, strict=True)]
    only_first, only_second = sum(each < 0 for each in differences), sum(each > 0 for each in differences)
    return Comparison(
        float(np.mean(differences)) if differences else math.nan,
        interval(differences, _DIFFERENCES),
        only_first,
        only_second,
        _mcnemar(only_first, only_second),
    )


def _mcnemar(one: int, two: int) -> float:
    discordant = one + two
    tail = sum(math.comb(discordant, count) for count in range(min(one, two) + 1))
    return min(1.0, 2 * tail / 2**discordant)
