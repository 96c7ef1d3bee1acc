"""How many targets of each group there are to choose from, and how many of them are kept."""

from decimal import Decimal

import torch
from torch import Tensor

from megaslm.slm.selection import AllReduceSum, keep_count
from megaslm.slm.targets import Targets


def population(groups: Targets, max_ref_loss: float | None, all_reduce_sum: AllReduceSum) -> Tensor:
    """How many of (G, n) targets are valid in each group, and how many eligible; (2, G) int64.

    `all_reduce_sum` sums over the ranks among which a group is spread.
    """
    return all_reduce_sum(torch.stack([groups.valid.sum(1), groups.eligible(max_ref_loss).sum(1)]))


def kept(groups: Targets, ratio: Decimal, max_ref_loss: float | None, all_reduce_sum: AllReduceSum) -> Tensor:
    """K of each group: ⌊k·N + ½⌋ of its N valid targets, or what is eligible where that is less; (G,) int64."""
    valid, eligible = population(groups, max_ref_loss, all_reduce_sum)
    return keep_count(valid, ratio).minimum(eligible)
