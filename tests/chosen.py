"""What the head gives for a choice, where the losses are made up and nothing is trained."""

from collections.abc import Sequence

import torch
from torch import Tensor

from megaslm.slm.choice import Choice, Every, HeadOutput, Known, Selected, no_threshold
from megaslm.slm.keys import HASH_BITS
from megaslm.slm.rule import StepPlan
from megaslm.slm.targets import Targets
from megaslm.slm.threshold import EXACT_STEPS, SelectionState
from megaslm.slm.topk import ordered_image


def joined(micro_batches: Sequence[Targets]) -> Targets:
    """The targets of a step."""
    fields = {name: [getattr(part, name) for part in micro_batches] for name in vars(micro_batches[0])}
    columns = {name: torch.cat([part.columns[name] for part in micro_batches]) for name in micro_batches[0].columns}
    tensors = {name: torch.cat(parts) for name, parts in fields.items() if isinstance(parts[0], Tensor)}
    return Targets(**tensors, columns=columns)


def output_of(choice: Choice, losses: Tensor, entropies: Tensor | None = None) -> HeadOutput:
    """For (B, L) losses, and entropies where the choice is made by them."""
    flat = losses.flatten()
    if isinstance(choice, Every | Known):
        mask, cut = choice.mask, no_threshold(losses.device)
    else:
        measured = [losses] if entropies is None else [losses, entropies]
        mask, cut, *_ = choice(*(column.flatten() for column in measured))
    return HeadOutput(flat[mask].sum(), flat, mask, cut).view_as(losses)


def denominator_of(plan: StepPlan) -> Tensor:
    """Of a step whose count of selected targets is known beforehand."""
    assert plan.denominator is not None
    return plan.denominator


def selected(mask: Tensor, non_finite: Tensor | None = None) -> Selected:
    """What a choice comes to that cuts no groups."""
    bad = torch.zeros_like(mask) if non_finite is None else non_finite
    return Selected(mask, no_threshold(mask.device), bad, bad.sum())


def state_at(threshold: float) -> SelectionState:
    """The state of a run whose exact first steps all had this threshold, so that the next step has a forecast."""
    return SelectionState((int(ordered_image(torch.tensor(threshold))) << HASH_BITS,) * EXACT_STEPS)
