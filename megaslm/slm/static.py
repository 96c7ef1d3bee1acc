"""Selection by values that do not depend on the model: before a forward pass, or once for all runs as a mask."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from megaslm.slm.draw import Draw
from megaslm.slm.formula import Formula
from megaslm.slm.policy import TOP, Policy, select_by
from megaslm.slm.targets import StaticCriterion, Targets, static_values
from megaslm.slm.topk import AllReduceSum, Ratio, on_this_rank_alone

StaticRule = StaticCriterion | Literal["reference_and_entropy"] | Formula


@dataclass(frozen=True)
class StaticSelection:
    """The selection in each of G groups of n targets.

    `mask`: (G, n) bool. `unsortable`: (G, n) bool, eligible targets whose value is NaN or infinite. `count`: (G,)
    int64, selected targets over the ranks that share a group. `threshold`: (G,) int64, see `select_top`; None for an
    intersection, and where values are random.
    """

    mask: Tensor
    unsortable: Tensor
    count: Tensor
    threshold: Tensor | None


def select_static(
    criterion: StaticRule,
    groups: Targets,
    ratio: Ratio,
    max_ref_loss: float | None,
    *,
    policy: Policy = TOP,
    seed: int = 0,
    step: int = 0,
    all_reduce_sum: AllReduceSum = on_this_rank_alone,
) -> StaticSelection:
    """The selection in each group by a static criterion.

    The intersection holds the targets that are in the top by −ref_loss and in the top by −ref_entropy. It has no K of
    its own, and no other policy.

    Args:
        criterion: what targets are sorted by.
        groups: (G, n) targets; with an all-reduce, each rank holds its own n of the same G groups.
        ratio: k, or that of each group.
        max_ref_loss: targets with a larger reference loss, in nats, are not eligible.
        policy: how targets are selected by the criterion.
        seed: of the criterion `random`, and of a draw.
        step: of the criterion `random`, and of a draw.
        all_reduce_sum: sums over the ranks that share a group.
    """
    if criterion == "reference_and_entropy":
        by_loss = select_static("reference", groups, ratio, max_ref_loss, all_reduce_sum=all_reduce_sum)
        by_entropy = select_static("entropy", groups, ratio, max_ref_loss, all_reduce_sum=all_reduce_sum)
        mask = by_loss.mask & by_entropy.mask
        return StaticSelection(mask, by_loss.unsortable | by_entropy.unsortable, all_reduce_sum(mask.sum(1)), None)
    values = static_values(criterion, groups, seed=seed, step=step)
    if policy.temperature is not None:
        values = Draw(policy.temperature, seed, step).perturbed(values, groups.keys)
    eligible = groups.eligible(max_ref_loss)
    found = select_by(policy, values, groups, eligible, ratio, all_reduce_sum)
    threshold = None if criterion == "random" or policy.temperature is not None else found.threshold
    return StaticSelection(found.mask, eligible & ~torch.isfinite(values), found.count, threshold)
