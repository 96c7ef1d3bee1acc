"""What one optimiser step trains on: the selected targets of all its micro-batches and the count they are divided by.

The step's loss is the sum of the selected losses over all ranks and micro-steps, divided by their number: a sum over a
global count, never a mean of means (Rho-1, equation 3). The count follows from the tokens alone, so it is known before
the first backward pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, Protocol

import torch
from torch import Tensor

from megaslm.slm.selection import AllReduceSum, keep_count, on_this_rank_alone, select_top
from megaslm.slm.token_loss import Select

Scope = Literal["batch", "sequence", "microbatch"]

MeasureLosses = Callable[[int], Tensor]
"""Runs the model over one micro-batch, named by its number, without gradients: (B, L) float32 losses."""


@dataclass(frozen=True)
class Targets:
    """The targets of one micro-batch of B rows.

    `valid`: (B, L) bool. `keys`: (B, L) int64, unique over the step. `ref_loss`: (B, L) float32, or None under clm.
    """

    valid: Tensor
    keys: Tensor
    ref_loss: Tensor | None = None


@dataclass(frozen=True)
class StepSelection:
    """How to choose in each micro-batch, and by what to divide.

    `selects`: one callable a micro-batch. `selected_count`: int64 scalar, |S| over all ranks and micro-steps.
    `target_count`: int64 scalar, valid targets over all ranks and micro-steps.
    """

    selects: tuple[Select, ...]
    selected_count: Tensor
    target_count: Tensor


class Objective(Protocol):
    """Decides what a step trains on."""

    def plan_step(
        self, micro_batches: Sequence[Targets], measure_losses: MeasureLosses, all_reduce_sum: AllReduceSum
    ) -> StepSelection:
        """Plans one step. Called on every rank with equally many micro-batches; contains collectives."""
        ...


def valid_targets(tokens: Tensor, eos_id: int) -> Tensor:
    """Where a target counts: what follows EOS opens another document, or is padding. EOS itself is a target.

    Args:
        tokens: (B, L+1) int64.

    Returns:
        (B, L) bool.
    """
    return tokens[:, :-1] != eos_id


def excess_loss(losses: Tensor, ref_loss: Tensor) -> Tensor:
    """How much worse the model is than the reference, signed, in nats (Rho-1, equation 3). Any equal shapes."""
    return losses - ref_loss


class CausalObjective:
    """Causal language modeling: every valid target."""

    def plan_step(
        self, micro_batches: Sequence[Targets], measure_losses: MeasureLosses, all_reduce_sum: AllReduceSum
    ) -> StepSelection:
        """Selects every valid target."""
        count = _target_count(micro_batches, all_reduce_sum)
        return StepSelection(tuple(_known(targets.valid) for targets in micro_batches), count, count)


@dataclass(frozen=True)
class SelectiveObjective:
    """Selective language modeling: the top `keep_ratio` of valid targets by excess loss, within `scope`."""

    keep_ratio: Decimal
    scope: Scope

    def plan_step(
        self, micro_batches: Sequence[Targets], measure_losses: MeasureLosses, all_reduce_sum: AllReduceSum
    ) -> StepSelection:
        """Selects the top of each group of the scope."""
        target_count = _target_count(micro_batches, all_reduce_sum)
        if self.scope == "batch":
            selected_count = keep_count(target_count, self.keep_ratio)
            return StepSelection(
                self._select_over_step(micro_batches, selected_count, measure_losses, all_reduce_sum),
                selected_count,
                target_count,
            )
        grouped = [self._in_groups(targets) for targets in micro_batches]
        group_counts = [keep_count(targets.valid.sum(1), self.keep_ratio) for targets in grouped]
        return StepSelection(
            tuple(_within_groups(targets, counts) for targets, counts in zip(grouped, group_counts, strict=True)),
            all_reduce_sum(torch.stack([counts.sum() for counts in group_counts]).sum()),
            target_count,
        )

    def _in_groups(self, targets: Targets) -> Targets:
        """The targets as (G, n): a group is a row under `sequence` and all of them under the other scopes."""
        return targets if self.scope == "sequence" else _as_one_group([targets])

    def _select_over_step(
        self,
        micro_batches: Sequence[Targets],
        count: Tensor,
        measure_losses: MeasureLosses,
        all_reduce_sum: AllReduceSum,
    ) -> tuple[Select, ...]:
        step = _as_one_group(micro_batches)
        if len(micro_batches) == 1:
            return (_within_groups(step, count[None], all_reduce_sum),)
        # Every loss of the step is needed before its first backward pass: a forward pass over all micro-batches first.
        losses = torch.cat([measure_losses(number).flatten() for number in range(len(micro_batches))])
        selected = _within_groups(step, count[None], all_reduce_sum)(losses)
        return tuple(_known(part) for part in selected.split([targets.valid.numel() for targets in micro_batches]))


def _target_count(micro_batches: Sequence[Targets], all_reduce_sum: AllReduceSum) -> Tensor:
    return all_reduce_sum(torch.stack([targets.valid.sum() for targets in micro_batches]).sum())


def _as_one_group(micro_batches: Sequence[Targets]) -> Targets:
    return Targets(
        valid=torch.cat([targets.valid.flatten() for targets in micro_batches])[None],
        keys=torch.cat([targets.keys.flatten() for targets in micro_batches])[None],
        ref_loss=torch.cat([_ref_loss(targets).flatten() for targets in micro_batches])[None],
    )


def _known(mask: Tensor) -> Select:
    """A choice that does not depend on the losses."""
    return lambda losses: mask.flatten()


def _within_groups(targets: Targets, counts: Tensor, all_reduce_sum: AllReduceSum = on_this_rank_alone) -> Select:
    """The top `counts` of each group of (G, n) targets by excess loss."""

    def select(losses: Tensor) -> Tensor:
        scores = excess_loss(losses.view_as(targets.valid), _ref_loss(targets))
        return select_top(scores, targets.keys, targets.valid, counts, all_reduce_sum).flatten()

    return select


def _ref_loss(targets: Targets) -> Tensor:
    if targets.ref_loss is None:
        raise ValueError("selective language modeling needs the reference's losses of every micro-batch")
    return targets.ref_loss
