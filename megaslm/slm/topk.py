"""Which targets are trained on: the K of largest value, ties to the lower key (Rho-1, section 2.2, equation 5).

Selection is a pure function of (value, key): the selected set does not depend on how many ranks there are. The
threshold is found by histogram refinement, 8 bits at a time. Nothing is gathered, nothing is compared with a tolerance,
nothing is read by the host; each pass all-reduces 256 counters of 4 bytes a group.
"""

from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

import torch
from torch import Tensor

from megaslm.slm.keys import KEY_BITS
from megaslm.slm.targets import Targets

AllReduceSum = Callable[[Tensor], Tensor]
"""Sums a tensor over all ranks; every rank gets the sum."""

VALUE_BITS = 32
_DIGIT_BITS = 8
_BINS = 1 << _DIGIT_BITS
_LARGEST_KEY = (1 << KEY_BITS) - 1


class Top(NamedTuple):
    """What `select_top` found.

    `mask`: (G, n) bool. `threshold`: (G,) int64, the ordered image of the smallest selected value of each group.
    """

    mask: Tensor
    threshold: Tensor


def on_this_rank_alone(tensor: Tensor) -> Tensor:
    """The all-reduce of scopes that end at this rank: nothing to add."""
    return tensor


def keep_count(target_count: Tensor, keep_ratio: Decimal) -> Tensor:
    """K = ⌊k·N + ½⌋ in exact integer arithmetic, with k taken as the decimal that the user wrote.

    Args:
        target_count: int64 of any shape, N.
        keep_ratio: k in (0, 1].

    Returns:
        int64 of the same shape.
    """
    numerator, denominator = keep_ratio.as_integer_ratio()
    return (2 * numerator * target_count + denominator) // (2 * denominator)


def population(groups: Targets, max_ref_loss: float | None, all_reduce_sum: AllReduceSum) -> Tensor:
    """How many of (G, n) targets are valid in each group, and how many eligible; (2, G) int64.

    `all_reduce_sum` sums over the ranks among which a group is spread.
    """
    return all_reduce_sum(torch.stack([groups.valid.sum(1), groups.eligible(max_ref_loss).sum(1)]))


def kept(groups: Targets, ratio: Decimal, max_ref_loss: float | None, all_reduce_sum: AllReduceSum) -> Tensor:
    """K of each group: ⌊k·N + ½⌋ of its N valid targets, or what is eligible where that is less; (G,) int64."""
    valid, eligible = population(groups, max_ref_loss, all_reduce_sum)
    return keep_count(valid, ratio).minimum(eligible)


def select_top(
    values: Tensor,
    keys: Tensor,
    eligible: Tensor,
    count: Tensor,
    all_reduce_sum: AllReduceSum = on_this_rank_alone,
) -> Top:
    """Marks, in each group, exactly `count` eligible elements of largest value; among equal values, of lowest key.

    Args:
        values: (G, n) float32. With an all-reduce, each rank holds its own n elements of the same G groups.
        keys: (G, n) int64 in [0, 2^56), unique over a group and over all ranks.
        eligible: (G, n) bool.
        count: (G,) int64, the same on every rank; more than there are eligible elements selects them all.
        all_reduce_sum: sums over the ranks among which a group is spread; called 4 + 7 times with G·256 counters.

    Returns:
        The marks, and the thresholds; where a group's count is 0 its threshold means nothing.
    """
    images = ordered_image(values)
    threshold, left = find_threshold(images, VALUE_BITS, eligible, count, all_reduce_sum)
    ties = eligible & (images == threshold[:, None])
    mirrored_keys = _LARGEST_KEY - keys
    key_threshold, _ = find_threshold(mirrored_keys, KEY_BITS, ties, left, all_reduce_sum)
    above = (eligible & (images > threshold[:, None])) | (ties & (mirrored_keys >= key_threshold[:, None]))
    return Top(above & (count > 0)[:, None], threshold)


def find_threshold(
    values: Tensor, bits: int, counted: Tensor, count: Tensor, all_reduce_sum: AllReduceSum
) -> tuple[Tensor, Tensor]:
    """The `count`-th largest counted value of each group.

    Args:
        values: (G, n) int64 in [0, 2^bits).
        bits: how many bits the values have; each 8 of them cost one all-reduce.
        counted: (G, n) bool.
        count: (G,) int64.
        all_reduce_sum: as in `select_top`.

    Returns:
        (G,) int64: the thresholds. (G,) int64: how many of those equal to it are among the `count` largest. With fewer
        than `count` values the threshold is 0; with a count of 0 both mean nothing.
    """
    # 4 bytes a counter: no step has two thousand million targets.
    weights = counted.to(torch.int32)
    prefix = torch.zeros_like(count)
    remaining = count
    for shift in reversed(range(0, bits, _DIGIT_BITS)):
        # The next digit, from 1 on, of what still ties with the threshold; the rest falls into a bin on either side.
        digits = (values >> shift).sub_((prefix << _DIGIT_BITS)[:, None] - 1).clamp_(0, _BINS + 1)
        counters = torch.zeros(len(values), _BINS + 2, dtype=torch.int32, device=values.device)
        counters.scatter_add_(1, digits, weights)
        histogram = all_reduce_sum(counters[:, 1:-1].contiguous()).to(torch.int64)
        at_least = histogram.flip(1).cumsum(1).flip(1)
        # at_least falls with the digit: the threshold has the largest that still leaves `remaining` at or above it.
        digit = ((at_least >= remaining[:, None]).sum(1, keepdim=True) - 1).clamp(min=0)
        remaining = remaining - (at_least.gather(1, digit) - histogram.gather(1, digit)).squeeze(1)
        prefix = (prefix << _DIGIT_BITS) | digit.squeeze(1)
    return prefix, remaining


def ordered_image(values: Tensor) -> Tensor:
    """Maps float32 to integers in [0, 2^32) in the same order; -0.0 and 0.0 are equal, as they are as numbers."""
    bits = (values + 0.0).view(torch.int32).to(torch.int64) & 0xFFFF_FFFF
    return torch.where(bits >= 1 << 31, 0xFFFF_FFFF - bits, bits + (1 << 31))


def value_of_image(images: Tensor) -> Tensor:
    """The float32 values whose ordered image is given."""
    bits = torch.where(images >= 1 << 31, images - (1 << 31), 0xFFFF_FFFF - images)
    # The upper half of the unsigned range are the negative int32.
    return torch.where(bits >= 1 << 31, bits - (1 << 32), bits).to(torch.int32).view(torch.float32)
