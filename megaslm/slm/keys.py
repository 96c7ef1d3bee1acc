"""The key of a target, which breaks ties. It depends on the data only, never on the layout over ranks.

A row that occurs more than once in a step has a separate key for each copy.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from megaslm.slm.visits import MOST_VISITS, VISIT_BITS

POSITION_BITS = 16
ROW_BITS = 32
KEY_BITS = ROW_BITS + VISIT_BITS + POSITION_BITS
HASH_BITS = 31

# The mixing constants of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
_INCREMENT = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
_SHIFTS = (30, 27, 31)
AllGather = Callable[[Tensor], Tensor]
"""Gathers tensors of one shape from all ranks, stacked in rank order; every rank gets the result."""


def target_keys(rows: Tensor, visits: Tensor | int, seq_len: int) -> Tensor:
    """Keys of the targets of `rows`, ordered by (row, visit, position).

    They are unique where no (row, visit modulo 2^8) occurs twice.

    Args:
        rows: (B,) int64, row numbers in the data, below 2^32; the rows of all streams are numbered consecutively.
        visits: (B,) int64 or one for all rows: how often the row occurred before.
        seq_len: targets per row, L; at most 2^16.

    Returns:
        (B, L) int64 in [0, 2^56).

    Raises:
        ValueError: rows are too long for unique keys.
    """
    if seq_len > 1 << POSITION_BITS:
        raise ValueError(f"seq_len = {seq_len}: rows of more than {1 << POSITION_BITS} targets have no unique keys")
    visited = (rows.to(torch.int64) << VISIT_BITS) | (visits % MOST_VISITS)
    return (visited << POSITION_BITS)[:, None] + torch.arange(seq_len, device=rows.device)


def row_of(keys: Tensor) -> Tensor:
    """The dataset rows of the keys; int64 of the same shape."""
    return keys >> (VISIT_BITS + POSITION_BITS)


def hash_of(keys: Tensor, *salt: int) -> Tensor:
    """A hash of each key that looks uniform; different salts give independent hashes.

    Returns:
        int64 of the same shape, in [0, 2^31).
    """
    mixed = keys
    for word in (0, *salt):
        mixed = _mix(mixed ^ word)
    return mixed & ((1 << HASH_BITS) - 1)


def _mix(words: Tensor) -> Tensor:
    """SplitMix64's output function. int64 wraps around as unsigned words would."""
    words = words + _INCREMENT
    for shift, multiplier in zip(_SHIFTS, _MULTIPLIERS, strict=False):
        words = (words ^ _shifted_right(words, shift)) * multiplier
    return words ^ _shifted_right(words, _SHIFTS[-1])


def _shifted_right(words: Tensor, bits: int) -> Tensor:
    """A logical right shift, as for unsigned words."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def earlier_copies(rows: Tensor, rank: int, all_gather: AllGather) -> Tensor:
    """How many copies of each row precede it in the step; 0 for all where no row occurs twice.

    Copies are counted in rank order, so the first of two copies depends on the layout. The selection of the row does
    not, since the copies are equal.

    Args:
        rows: (n,) int64, the rows of this rank's micro-batches of one step; every rank has the same number.
        rank: of this process.
        all_gather: called once.

    Returns:
        (n,) int64.
    """
    of_ranks = all_gather(rows)
    everywhere = of_ranks.flatten()
    order = everywhere.argsort(stable=True)
    ordered = everywhere[order]
    places = torch.arange(len(ordered), device=rows.device)
    opens_copies = torch.ones_like(ordered, dtype=torch.bool)
    opens_copies[1:] = ordered[1:] != ordered[:-1]
    first_places = places.where(opens_copies, 0).cummax(0).values
    return torch.empty_like(everywhere).scatter_(0, order, places - first_places).view_as(of_ranks)[rank]
