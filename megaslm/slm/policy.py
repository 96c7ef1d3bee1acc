"""How targets are selected by their values: the top k, a band below it, a draw, or all from a fixed value on."""

from dataclasses import dataclass
from decimal import Decimal

import torch
from torch import Tensor

from megaslm.slm.targets import Targets
from megaslm.slm.topk import AllReduceSum, Ratio, kept, ordered_image, select_quota


@dataclass(frozen=True)
class Policy:
    """The top k, unless one of the fields is set.

    `skip_ratio`: the share of the targets that is left out because its values are largest; the next k are selected.
    `temperature`: in nats; k of the targets are drawn, see `Draw`. `threshold`: in nats; the targets from this value on
    are selected, however many they are.
    """

    skip_ratio: Decimal = Decimal(0)
    temperature: float | None = None
    threshold: float | None = None


TOP = Policy()


@dataclass(frozen=True, eq=False)
class Selection:
    """The selection in each of G groups of n targets.

    `mask`: (G, n) bool. `count`: (G,) int64, selected targets over the ranks that share a group. `threshold`: (G,)
    int64, see `select_top`.
    """

    mask: Tensor
    count: Tensor
    threshold: Tensor


def threshold_image(threshold: float, device: torch.device) -> Tensor:
    """The ordered image of a fixed threshold, an int64 scalar."""
    return ordered_image(torch.full((), threshold, device=device))


def select_by(
    policy: Policy, values: Tensor, groups: Targets, eligible: Tensor, ratio: Ratio, all_reduce_sum: AllReduceSum
) -> Selection:
    """Selects in each group.

    Args:
        policy: how.
        values: (G, n) float32, largest first; those of a draw are perturbed.
        groups: (G, n) targets; with an all-reduce, each rank holds its own n of the same G groups.
        eligible: (G, n) bool.
        ratio: k, or that of each group.
        all_reduce_sum: sums over the ranks that share a group.
    """
    if policy.threshold is not None:
        threshold = threshold_image(policy.threshold, values.device)
        mask = eligible & (ordered_image(values) >= threshold)
        return Selection(mask, all_reduce_sum(mask.sum(1)), threshold.expand(len(mask)))
    quota = kept(groups.valid, eligible, ratio, all_reduce_sum, policy.skip_ratio)
    top = select_quota(values, groups.keys, eligible, quota, all_reduce_sum)
    return Selection(top.mask, quota.count, top.threshold)
