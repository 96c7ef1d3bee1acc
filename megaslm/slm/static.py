"""The selection by values that the model has no part in: made before a forward pass, or once for all runs as a mask."""

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
    """What is selected in each of G groups of n targets.

    `mask`: (G, n) bool. `unrankable`: (G, n) bool, eligible targets whose value is NaN or infinite. `count`: (G,)
    int64, how many are selected over the ranks among which a group is spread. `threshold`: (G,) int64, see
    `select_top`; of an intersection None.
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

    The intersection is what is among the top by −ref_loss and among the top by −ref_entropy; it has no K of its own.

    Args:
        criterion: what is ranked.
        groups: (G, n) targets; with an all-reduce, each rank holds its own n of the same G groups.
        ratio: k.
        max_ref_loss: targets of a larger reference loss are not eligible, in nats.
        seed: of the criterion `random`.
        step: likewise.
        all_reduce_sum: sums over the ranks among which a group is spread.
    """
    if criterion == "reference_and_entropy":
        by_loss = select_static("reference", groups, ratio, max_ref_loss, all_reduce_sum=all_reduce_sum)
        by_entropy = select_static("entropy", groups, ratio, max_ref_loss, all_reduce_sum=all_reduce_sum)
        mask = by_loss.mask & by_entropy.mask
        return StaticSelection(mask, by_loss.unrankable | by_entropy.unrankable, all_reduce_sum(mask.sum(1)), None)
    values = static_values(criterion, groups, seed=seed, step=step)
    eligible = groups.eligible(max_ref_loss)
    count = kept(groups, ratio, max_ref_loss, all_reduce_sum)
    top = select_top(values, groups.keys, eligible, count, all_reduce_sum)
    return StaticSelection(top.mask, eligible & ~torch.isfinite(values), count, top.threshold)
