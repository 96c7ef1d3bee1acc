"""One optimiser step: choose, forward, backward, update. The host reads the device at most once a micro-step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from megaslm.data.loading.loader import MicroBatch
from megaslm.engine.distributed import World, all_gather, all_reduce_sum
from megaslm.engine.zero import ZeroEngine
from megaslm.errors import NonFiniteLoss, NonFiniteScore
from megaslm.slm.choice import Choice, Known
from megaslm.slm.keys import row_of, target_keys
from megaslm.slm.objective import Objective
from megaslm.slm.repeats import earlier_copies
from megaslm.slm.step_plan import Moment
from megaslm.slm.targets import Targets, valid_targets
from megaslm.slm.telemetry import selection_sums, sums_of_nothing

_MOST_ROWS_NAMED = 10


@dataclass(frozen=True)
class StepResult:
    """What a step did, still on the device.

    `sums`: of `megaslm.slm.telemetry`, over all ranks. `threshold`: float32 scalar, the score from which targets
    were selected, NaN where all were or none. `gradient_norm`: float32 scalar, before clipping.
    """

    step: int
    learning_rate: float
    sums: Tensor
    threshold: Tensor
    gradient_norm: Tensor


def train_step(
    engine: ZeroEngine,
    objective: Objective,
    micro_batches: Sequence[MicroBatch],
    world: World,
    *,
    eos_id: int,
    domain_count: int,
    may_repeat_rows: bool,
    moment: Moment,
    learning_rate: float,
    row_name: Callable[[int], str] = str,
) -> StepResult:
    """Trains on the selected targets of all ranks' micro-batches; every rank brings equally many.

    Where `may_repeat_rows` is false, no row comes twice in the step. `row_name` is what a message calls a row.

    Raises:
        NonFiniteLoss: a target cannot be ranked, because its loss or what the reference says of it is not finite.
    """
    visits = _visits(micro_batches, world, may_repeat_rows=may_repeat_rows)
    targets = [_targets(*visited, eos_id) for visited in zip(micro_batches, visits, strict=True)]
    with _naming_rows(targets, moment, row_name):
        plan = objective.plan_step(
            targets, moment, lambda number: engine.measure(micro_batches[number].tokens), all_reduce_sum
        )
    # DeepSpeed averages over ranks and micro-steps; multiplied back, the sum is divided by the global count alone.
    averaged_over = world.size * len(micro_batches)
    scale = averaged_over / plan.denominator.clamp(min=1)
    sums = sums_of_nothing(domain_count, world.device)
    for number, micro_batch in enumerate(micro_batches):
        choice = plan.choices[number]
        with _naming_rows([targets[number]], moment, row_name):
            selected_sum, losses = engine.forward(micro_batch.tokens, choice)
        engine.backward(selected_sum * scale)
        engine.step(learning_rate)
        measured = _measured(choice, targets[number])
        if plan.losses is not None:
            losses, measured = plan.losses[number], targets[number].valid
        sums += selection_sums(
            selected_sum.detach(),
            losses,
            measured,
            choice.mask.view_as(losses),
            targets[number],
            micro_batch.domain,
            domain_count,
        )
    threshold = objective.end_step(plan)
    return StepResult(
        step=moment.step,
        learning_rate=learning_rate,
        sums=all_reduce_sum(sums),
        threshold=torch.full((), torch.nan, device=world.device) if threshold is None else threshold,
        gradient_norm=torch.as_tensor(engine.gradient_norm(), dtype=torch.float32, device=world.device),
    )


def _visits(micro_batches: Sequence[MicroBatch], world: World, *, may_repeat_rows: bool) -> Sequence[Tensor | int]:
    """How often the rows of each micro-batch were met before: in earlier epochs, and earlier in this step."""
    epochs = [micro_batch.visit for micro_batch in micro_batches]
    if not may_repeat_rows:
        return epochs
    rows = [micro_batch.rows for micro_batch in micro_batches]
    copies = earlier_copies(torch.cat(rows), world.rank, all_gather).split([len(part) for part in rows])
    return [epoch + earlier for epoch, earlier in zip(epochs, copies, strict=True)]


def _targets(micro_batch: MicroBatch, visits: Tensor | int, eos_id: int) -> Targets:
    return Targets(
        valid=valid_targets(micro_batch.tokens, eos_id),
        keys=target_keys(micro_batch.rows, visits, micro_batch.tokens.shape[1] - 1),
        ref_loss=micro_batch.ref_loss,
        ref_entropy=micro_batch.ref_entropy,
        selected=micro_batch.selected,
    )


def _measured(choice: Choice, targets: Targets) -> Tensor:
    return choice.measured.view_as(targets.valid) if isinstance(choice, Known) else targets.valid


@contextmanager
def _naming_rows(targets: Sequence[Targets], moment: Moment, row_name: Callable[[int], str]) -> Iterator[None]:
    """Where a target cannot be ranked, its rows are named."""
    try:
        yield
    except NonFiniteScore as error:
        keys = torch.cat([part.keys.flatten() for part in targets])
        rows: list[int] = row_of(keys[error.places]).unique().tolist()
        named = ", ".join(map(row_name, rows[:_MOST_ROWS_NAMED])) + (", …" if len(rows) > _MOST_ROWS_NAMED else "")
        where = f"in the rows {named}" if rows else "on another rank, which names their rows"
        raise NonFiniteLoss(
            f"step {moment.step}: {len(error.places) or 'some'} targets have a score that is NaN or infinite, {where}; "
            "the run stopped before the step: lower train.lr, or verify these rows and the starting weights"
        ) from error
