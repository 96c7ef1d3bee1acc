"""One optimiser step: choose, forward, backward, update. Nothing in it waits for the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megaslm.data.loader import MicroBatch
from megaslm.engine.distributed import World, all_reduce_sum
from megaslm.engine.zero import ZeroEngine
from megaslm.slm.objective import Objective, Targets, valid_targets
from megaslm.slm.selection import target_keys


@dataclass(frozen=True)
class StepResult:
    """What a step did, still on the device.

    `sums`: (5,) float64 over all ranks: selected losses, all valid losses, selected targets, valid targets, and valid
    targets whose loss or reference loss is not finite. `gradient_norm`: before clipping.
    """

    step: int
    learning_rate: float
    sums: Tensor
    gradient_norm: Tensor | float


def train_step(
    engine: ZeroEngine,
    objective: Objective,
    micro_batches: Sequence[MicroBatch],
    world: World,
    *,
    eos_id: int,
    step: int,
    learning_rate: float,
) -> StepResult:
    """Trains on the selected targets of all ranks' micro-batches; every rank brings equally many."""
    targets = [_targets(micro_batch, eos_id) for micro_batch in micro_batches]
    plan = objective.plan_step(targets, lambda number: engine.measure(micro_batches[number].tokens), all_reduce_sum)
    # DeepSpeed averages over ranks and micro-steps; multiplied back, the sum is divided by the global count alone.
    averaged_over = world.size * len(micro_batches)
    scale = averaged_over / plan.selected_count.clamp(min=1)
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    for micro_batch, chosen, select in zip(micro_batches, targets, plan.selects, strict=True):
        selected_sum, losses = engine.forward(micro_batch.tokens, select)
        engine.backward(selected_sum * scale)
        engine.step(learning_rate)
        sums += _observed(selected_sum.detach(), losses, chosen)
    selected_sum_all, loss_sum_all, bad_targets = all_reduce_sum(sums)
    return StepResult(
        step=step,
        learning_rate=learning_rate,
        sums=torch.stack([selected_sum_all, loss_sum_all, plan.selected_count, plan.target_count, bad_targets]),
        gradient_norm=engine.gradient_norm(),
    )


def _targets(micro_batch: MicroBatch, eos_id: int) -> Targets:
    return Targets(
        valid=valid_targets(micro_batch.tokens, eos_id),
        keys=target_keys(micro_batch.rows, micro_batch.visit, micro_batch.tokens.shape[1] - 1),
        ref_loss=micro_batch.ref_loss,
    )


def _observed(selected_sum: Tensor, losses: Tensor, targets: Targets) -> Tensor:
    scores = losses if targets.ref_loss is None else losses - targets.ref_loss
    bad = targets.valid & ~torch.isfinite(scores)
    return torch.stack([selected_sum.double(), losses.double().where(targets.valid, 0.0).sum(), bad.sum().double()])
