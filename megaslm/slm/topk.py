"""The K targets of largest value, ties to the lower key (Rho-1, section 2.2, equation 5).

Selection is a pure function of (value, key), so the selected set does not depend on the number of ranks. The threshold
is found by histogram refinement, 8 bits at a time. There are no gathers, no tolerances and no reads by the host. Each
pass all-reduces 256 counters of 4 bytes per group.
"""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

import torch
from torch import Tensor

from megaslm.slm.keys import KEY_BITS

AllReduceSum = Callable[[Tensor], Tensor]
"""Sums a tensor over all ranks; every rank gets the sum."""

Ratio = Decimal | tuple[Decimal, ...]
"""k of all groups, or of each group."""

VALUE_BITS = 32
_DIGIT_BITS = 8
_BINS = 1 << _DIGIT_BITS
_LARGEST_KEY = (1 << KEY_BITS) - 1


@dataclass(frozen=True, eq=False)
class Quota:
    """How many targets of each group are selected, from the largest value down; (G,) int64 each.

    `skipped`: the largest, which are left out; None where none are. `count`: the next, which are selected.
    """

    count: Tensor
    skipped: Tensor | None = None


class Top(NamedTuple):
    """The result of `select_top`.

    `mask`: (G, n) bool. `threshold`: (G,) int64, the ordered image of the smallest selected value of each group.
    """

    mask: Tensor
    threshold: Tensor


def on_this_rank_alone(tensor: Tensor) -> Tensor:
    """The all-reduce for groups that lie on one rank."""
    return tensor


def keep_count(target_count: Tensor, keep_ratio: Decimal) -> Tensor:
    """K = ⌊k·N + ½⌋ in exact integer arithmetic, with k as the decimal that the user wrote.

    Args:
        target_count: int64 of any shape, N.
        keep_ratio: k in [0, 1].

    Returns:
        int64 of the same shape.
    """
    numerator, denominator = keep_ratio.as_integer_ratio()
    return (2 * numerator * target_count + denominator) // (2 * denominator)


def kept(
    valid: Tensor, eligible: Tensor, ratio: Ratio, all_reduce_sum: AllReduceSum, skip_ratio: Decimal = Decimal(0)
) -> Quota:
    """K of each group: ⌊k·N + ½⌋ of its N valid targets, or the number of eligible ones if smaller.

    With a share to skip, s = min(skip_ratio, 1 - k), the ⌊s·N + ½⌋ largest do not count as eligible.

    Args:
        valid: (G, n) bool.
        eligible: (G, n) bool.
        ratio: k, or that of each group.
        all_reduce_sum: sums over the ranks that share a group.
        skip_ratio: in [0, 1).
    """
    valid_count, eligible_count = all_reduce_sum(torch.stack([valid.sum(1), eligible.sum(1)]))
    ratios = ratio if isinstance(ratio, tuple) else (ratio,)
    parts = valid_count.tensor_split(len(ratios))
    count = torch.cat([keep_count(part, one) for part, one in zip(parts, ratios, strict=True)])
    if not skip_ratio:
        return Quota(count.minimum(eligible_count))
    skips = [keep_count(part, min(skip_ratio, 1 - one)) for part, one in zip(parts, ratios, strict=True)]
    skipped = torch.cat(skips).minimum(eligible_count)
    return Quota(count.minimum(eligible_count - skipped), skipped)


def select_top(
    values: Tensor,
    keys: Tensor,
    eligible: Tensor,
    count: Tensor,
    all_reduce_sum: AllReduceSum = on_this_rank_alone,
) -> Top:
    """Selects exactly `count` eligible elements of largest value in each group; of equal values, those of lowest key.

    Args:
        values: (G, n) float32. With an all-reduce, each rank holds its own n elements of the same G groups.
        keys: (G, n) int64 in [0, 2^56), unique over a group and over all ranks.
        eligible: (G, n) bool.
        count: (G,) int64, the same on every rank; a count above the number of eligible elements selects all of them.
        all_reduce_sum: sums over the ranks that share a group; called 4 + 7 times with G·256 counters.

    Returns:
        The mask and the thresholds. The threshold of a group whose count is 0 is undefined.
    """
    images = ordered_image(values)
    threshold, left = find_threshold(images, VALUE_BITS, eligible, count, all_reduce_sum)
    ties = eligible & (images == threshold[:, None])
    mirrored_keys = _LARGEST_KEY - keys
    key_threshold, _ = find_threshold(mirrored_keys, KEY_BITS, ties, left, all_reduce_sum)
    above = (eligible & (images > threshold[:, None])) | (ties & (mirrored_keys >= key_threshold[:, None]))
    return Top(above & (count > 0)[:, None], threshold)


def select_quota(
    values: Tensor, keys: Tensor, eligible: Tensor, quota: Quota, all_reduce_sum: AllReduceSum = on_this_rank_alone
) -> Top:
    """`select_top` of the `quota.count` elements that follow the `quota.skipped` largest of each group."""
    if quota.skipped is None:
        return select_top(values, keys, eligible, quota.count, all_reduce_sum)
    down_to_last = select_top(values, keys, eligible, quota.skipped + quota.count, all_reduce_sum)
    skipped = select_top(values, keys, eligible, quota.skipped, all_reduce_sum)
    return Top(down_to_last.mask & ~skipped.mask, down_to_last.threshold)


def find_threshold(
    values: Tensor, bits: int, counted: Tensor, count: Tensor, all_reduce_sum: AllReduceSum
) -> tuple[Tensor, Tensor]:
    """The `count`-th largest counted value of each group.

    Args:
        values: (G, n) int64 in [0, 2^bits).
        bits: number of bits of the values; each 8 of them cost one all-reduce.
        counted: (G, n) bool.
        count: (G,) int64.
        all_reduce_sum: as in `select_top`.

    Returns:
        (G,) int64: the thresholds. (G,) int64: how many elements equal to the threshold are among the `count` largest.
        With fewer than `count` values the threshold is 0. With a count of 0 both are undefined.
    """
    # 4 bytes per counter: no step has 2^31 targets.
    weights = counted.to(torch.int32)
    prefix = torch.zeros_like(count)
    remaining = count
    for shift in reversed(range(0, bits, _DIGIT_BITS)):
        # The next digit, counted from 1, of values that tie with the threshold so far; others fall into the outer bins.
        digits = (values >> shift).sub_((prefix << _DIGIT_BITS)[:, None] - 1).clamp_(0, _BINS + 1)
        counters = torch.zeros(len(values), _BINS + 2, dtype=torch.int32, device=values.device)
        counters.scatter_add_(1, digits, weights)
        histogram = all_reduce_sum(counters[:, 1:-1].contiguous()).to(torch.int64)
        at_least = histogram.flip(1).cumsum(1).flip(1)
        # at_least falls as the digit rises. The threshold has the largest digit with at_least >= remaining.
        digit = ((at_least >= remaining[:, None]).sum(1, keepdim=True) - 1).clamp(min=0)
        remaining = remaining - (at_least.gather(1, digit) - histogram.gather(1, digit)).squeeze(1)
        prefix = (prefix << _DIGIT_BITS) | digit.squeeze(1)
    return prefix, remaining


def ordered_image(values: Tensor) -> Tensor:
    """Maps float32 to integers in [0, 2^32) in the same order. -0.0 and 0.0 are equal."""
    bits = (values + 0.0).view(torch.int32).to(torch.int64) & 0xFFFF_FFFF
    return torch.where(bits >= 1 << 31, 0xFFFF_FFFF - bits, bits + (1 << 31))


def value_of_image(images: Tensor) -> Tensor:
    """The float32 values of ordered images."""
    bits = torch.where(images >= 1 << 31, images - (1 << 31), 0xFFFF_FFFF - images)
    # The upper half of the unsigned range holds the negative int32.
    return torch.where(bits >= 1 << 31, bits - (1 << 32), bits).to(torch.int32).view(torch.float32)
