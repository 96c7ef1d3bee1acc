"""The selected targets of a group by their values: the top k, a band below it, a draw, or all from a value on. Values
that do not depend on the model select before a forward pass, or once for all runs as a mask."""

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal

import torch
from torch import Tensor

from megaslm.slm.criterion import Draw, Formula, StaticCriterion, formula_of
from megaslm.slm.keys import HASH_BITS, hash_of
from megaslm.slm.targets import Targets
from megaslm.slm.topk import AllReduceSum, Ratio, kept, on_this_rank_alone, ordered_image, select_quota

StaticRule = StaticCriterion | Literal["reference_and_entropy"] | Formula


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

    `mask`: (G, n) bool. `unsortable`: (G, n) bool, eligible targets whose value is NaN or infinite. `count`: (G,)
    int64, selected targets over the ranks that share a group. `threshold`: (G,) int64, see `select_top`; None for an
    intersection, and where values are random.
    """

    mask: Tensor
    unsortable: Tensor
    count: Tensor
    threshold: Tensor | None


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
    unsortable = eligible & ~torch.isfinite(values)
    if policy.threshold is not None:
        threshold = threshold_image(policy.threshold, values.device)
        mask = eligible & (ordered_image(values) >= threshold)
        return Selection(mask, unsortable, all_reduce_sum(mask.sum(1)), threshold.expand(len(mask)))
    quota = kept(groups.valid, eligible, ratio, all_reduce_sum, policy.skip_ratio)
    top = select_quota(values, groups.keys, eligible, quota, all_reduce_sum)
    return Selection(top.mask, unsortable, quota.count, top.threshold)


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
) -> Selection:
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
        return Selection(mask, by_loss.unsortable | by_entropy.unsortable, all_reduce_sum(mask.sum(1)), None)
    values = _static_values(criterion, groups, seed=seed, step=step)
    if policy.temperature is not None:
        values = Draw(policy.temperature, seed, step).perturbed(values, groups.keys)
    found = select_by(policy, values, groups, groups.eligible(max_ref_loss), ratio, all_reduce_sum)
    return replace(found, threshold=None) if criterion == "random" or policy.temperature is not None else found


def _static_values(criterion: StaticCriterion | Formula, targets: Targets, *, seed: int, step: int) -> Tensor:
    """float32 of the targets' shape: −ref_loss, −ref_entropy (Rho-1's self-reference), a formula of columns, or a hash
    of the key."""
    if criterion == "random":
        # float32 holds 24 bits; keys break the resulting ties.
        return (hash_of(targets.keys, seed, step) >> (HASH_BITS - 24)).to(torch.float32)
    formula = formula_of(criterion)
    return targets.over_spans(formula.of({name: targets.column(name) for name in formula.columns}))
