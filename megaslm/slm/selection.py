"""Which targets are trained on: the K of largest score, ties to the lower key (Rho-1, section 2.2, equation 4).

Selection is a pure function of (score, key). A key is a property of the data (which row, at which visit, which
position), never of the layout over ranks, so that the selected set does not depend on how many ranks there are.
"""

from collections.abc import Callable
from decimal import Decimal

import torch
from torch import Tensor

AllReduceSum = Callable[[Tensor], Tensor]
"""Sums an int64 tensor over all ranks; every rank gets the sum."""

_DIGIT_BITS = 11
_BINS = 1 << _DIGIT_BITS
_SCORE_BITS = 32
_KEY_BITS = 63
_LARGEST_KEY = (1 << _KEY_BITS) - 1

_POSITION_BITS = 16
_VISIT_BITS = 8
_ROW_BITS = 32


def on_this_rank_alone(tensor: Tensor) -> Tensor:
    """The all-reduce of scopes that end at this rank: nothing to add."""
    return tensor


def target_keys(rows: Tensor, visit: int, seq_len: int) -> Tensor:
    """Unique keys of the targets of `rows`, ordered by (row, visit, position).

    Args:
        rows: (B,) int64, row numbers in the dataset, below 2^32.
        visit: how often the dataset was read before; below 2^8 (later visits share the last key range).
        seq_len: targets per row, L; at most 2^16.

    Returns:
        (B, L) int64, non-negative.
    """
    if seq_len > 1 << _POSITION_BITS:
        raise ValueError(f"seq_len = {seq_len}: rows of more than {1 << _POSITION_BITS} targets have no unique keys")
    visit = min(visit, (1 << _VISIT_BITS) - 1)
    first = (rows.to(torch.int64) << (_VISIT_BITS + _POSITION_BITS)) | (visit << _POSITION_BITS)
    return first[:, None] + torch.arange(seq_len, device=rows.device)


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


def select_top(
    scores: Tensor,
    keys: Tensor,
    eligible: Tensor,
    count: Tensor,
    all_reduce_sum: AllReduceSum = on_this_rank_alone,
) -> Tensor:
    """Marks, in each group, exactly `count` eligible elements of largest score; among equal scores, of lowest key.

    The cut is found by histogram refinement, 11 bits at a time: first over the ordered integer image of the float32
    scores (3 passes), then over the keys of those that tie at the cut (6 passes). Nothing is gathered, nothing is
    compared with a tolerance, nothing is read by the host; each pass all-reduces 2048 counters a group.

    Args:
        scores: (G, n) float32. With an all-reduce, each rank holds its own n elements of the same G groups.
        keys: (G, n) int64, non-negative, unique over a group and over all ranks.
        eligible: (G, n) bool.
        count: (G,) int64, the same on every rank; more than there are eligible elements selects them all.
        all_reduce_sum: sums over the ranks among which a group is spread.

    Returns:
        (G, n) bool.
    """
    undecided = eligible
    remaining = count
    selected = torch.zeros_like(eligible)
    for values, bits in ((_ordered_image(scores), _SCORE_BITS), (_LARGEST_KEY - keys, _KEY_BITS)):
        for shift in reversed(range(0, bits, _DIGIT_BITS)):
            digits = (values >> shift) & (_BINS - 1)
            above_cut, at_cut, taken = _split_at_cut(digits, undecided, remaining, all_reduce_sum)
            selected = selected | above_cut
            undecided = at_cut
            remaining = remaining - taken
    return selected | (undecided & (remaining > 0)[:, None])


def _split_at_cut(
    digits: Tensor, undecided: Tensor, remaining: Tensor, all_reduce_sum: AllReduceSum
) -> tuple[Tensor, Tensor, Tensor]:
    """One refinement: those surely selected, those still tied, and how many were selected over all ranks."""
    histogram = torch.zeros(digits.shape[0], _BINS, dtype=torch.int64, device=digits.device)
    histogram.scatter_add_(1, digits, undecided.to(torch.int64))
    histogram = all_reduce_sum(histogram)
    at_least = histogram.flip(1).cumsum(1).flip(1)
    # at_least falls with the digit: the cut is the largest digit that still leaves `remaining` at or above it.
    cut = ((at_least >= remaining[:, None]).sum(1, keepdim=True) - 1).clamp(min=0)
    taken = (at_least.gather(1, cut) - histogram.gather(1, cut)).squeeze(1)
    return undecided & (digits > cut), undecided & (digits == cut), taken


def _ordered_image(scores: Tensor) -> Tensor:
    """Maps float32 to integers in [0, 2^32) in the same order; -0.0 and 0.0 are equal, as they are as numbers."""
    bits = (scores + 0.0).view(torch.int32).to(torch.int64) & 0xFFFF_FFFF
    return torch.where(bits >= 1 << 31, 0xFFFF_FFFF - bits, bits + (1 << 31))
