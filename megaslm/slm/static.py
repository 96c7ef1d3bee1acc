"""Selection by values that do not depend on the model: before a forward pass, or once for all runs as a mask."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import torch
from torch import Tensor

from megaslm.slm.targets import StaticCriterion, Targets, static_values
from megaslm.slm.topk import AllReduceSum, kept, on_this_rank_alone, select_top

StaticRanking = StaticCriterion | Literal["reference_and_entropy"]


@dataclass(frozen=True)
class StaticSelection:
    """The selection in each of G groups of n targets.

    `mask`: (G, n) bool. `unrankable`: (G, n) bool, eligible targets whose value is NaN or infinite. `count`: (G,)
    int64, selected targets over the ranks that share a group. `threshold`: (G,) int64, see `select_top`; None for an
    intersection, and for `random`, whose values mean nothing.
    """

    mask: Tensor
    unrankable: Tensor
    count: Tensor
    threshold: Tensor | None


def select_static(
    criterion: StaticRanking,
    groups: Targets,
    ratio: Decimal,
    max_ref_loss: float | None,
    *,
    seed: int = 0,
    step: int = 0,
    all_reduce_sum: AllReduceSum = on_this_rank_alone,
) -> StaticSelection:
    """The top k of each group by a static criterion.

    The intersection holds the targets that are in the top by −ref_loss and in the top by −ref_entropy. It has no K of
    its own.

    Args:
        criterion: what targets are sorted by.
        groups: (G, n) targets; with an all-reduce, each rank holds its own n of the same G groups.
        ratio: k.
        max_ref_loss: targets with a larger reference loss, in nats, are not eligible.
        seed: of the criterion `random`.
        step: of the criterion `random`.
        all_reduce_sum: sums over the ranks that share a group.
    """
    if criterion == "reference_and_entropy":
        by_loss = select_static("reference", groups, ratio, max_ref_loss, all_reduce_sum=all_reduce_sum)
        by_entropy = select_static("entropy", groups, ratio, max_ref_loss, all_reduce_sum=all_reduce_sum)
        mask = by_loss.mask & by_entropy.mask
        return StaticSelection(mask, by_loss.unrankable | by_entropy.unrankable, all_reduce_sum(mask.sum(1)), None)
    values = static_values(criterion, groups, seed=seed, step=step)
    eligible = groups.eligible(max_ref_loss)
    count = kept(groups.valid, eligible, ratio, all_reduce_sum)
    top = select_top(values, groups.keys, eligible, count, all_reduce_sum)
    threshold = None if criterion == "random" else top.threshold
    return StaticSelection(top.mask, eligible & ~torch.isfinite(values), count, threshold)
