"""One optimiser step: choose, forward, backward, update. The host reads the device at most once a micro-step.

A skipped step names the targets that are to blame and the rows they are in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megaslm.engine.distributed import World, all_gather, all_reduce_sum, gather_objects
from megaslm.engine.zero import ZeroEngine
from megaslm.errors import NonFiniteCriterion
from megaslm.slm.choice import Choice, Every, HeadOutput, Known
from megaslm.slm.keys import earlier_copies, row_of, target_keys
from megaslm.slm.objective import Objective
from megaslm.slm.rule import Moment, StepPlan
from megaslm.slm.targets import Targets
from megaslm.slm.telemetry import selection_sums, sums_of_nothing, sums_of_unused
from megaslm.slm.valid_targets import valid_targets
from megaslm.stream.loader import MicroBatch

_MOST_ROWS_NAMED = 10


def why_unrankable(targets: Sequence[Targets], places: Sequence[int], row_name: Callable[[int], str]) -> str:
    """One sentence, the same on all ranks; contains collectives.

    Args:
        targets: of this rank's micro-batches.
        places: which of them, counted through, cannot be ranked.
        row_name: what a message calls a row.
    """
    keys = _keys(targets)
    return _sentence(unrankable=keys[list(places)], without_loss=keys[:0], row_name=row_name)


def why_left_out(
    targets: Sequence[Targets], choices: Sequence[Choice], outputs: Sequence[HeadOutput], row_name: Callable[[int], str]
) -> str:
    """The same for a step whose update was left out after its passes.

    Args:
        targets: of this rank's micro-batches.
        choices: how to choose of each.
        outputs: what the head gave for each.
        row_name: what a message calls a row.
    """
    keys = _keys(targets)
    chosen = torch.cat([output.mask.flatten() for output in outputs])
    finite = torch.isfinite(torch.cat([output.losses.flatten() for output in outputs]))
    unrankable = torch.cat([_unrankable(*pair) for pair in zip(choices, outputs, strict=True)])
    return _sentence(unrankable=keys[unrankable], without_loss=keys[chosen & ~finite], row_name=row_name)


def _keys(targets: Sequence[Targets]) -> Tensor:
    return torch.cat([part.keys.flatten() for part in targets])


def _unrankable(choice: Choice, output: HeadOutput) -> Tensor:
    """(T,) bool; a choice that does not wait for the losses was made before the passes, or not at all."""
    if isinstance(choice, Every | Known):
        return torch.zeros_like(choice.mask)
    return choice.unrankable(output.losses.flatten())


def _sentence(*, unrankable: Tensor, without_loss: Tensor, row_name: Callable[[int], str]) -> str:
    causes = ("{:,} targets cannot be ranked, their criterion is NaN or infinite", "{:,} losses are NaN or infinite")
    of_ranks = gather_objects([_counted(keys) for keys in (unrankable, without_loss)])
    for cause, found in zip(causes, zip(*of_ranks, strict=True), strict=True):
        targets = sum(count for count, _ in found)
        if targets:
            rows = sorted({row for _, first_rows in found for row in first_rows})
            named = ", ".join(map(row_name, rows[:_MOST_ROWS_NAMED])) + (", …" if len(rows) > _MOST_ROWS_NAMED else "")
            return f"{cause.format(targets)}, in the rows {named}"
    return "the gradient is NaN or infinite although every loss is a number"


def _counted(keys: Tensor) -> tuple[int, list[int]]:
    """How many targets these are, and the first of their rows, one more than are named."""
    return len(keys), row_of(keys).unique()[: _MOST_ROWS_NAMED + 1].tolist()


@dataclass(frozen=True)
class StepResult:
    """What a step did, still on the device.

    `sums`: of `megaslm.slm.telemetry`, over all ranks. `threshold`: float32 scalar, the value of the criterion from
    which targets were selected, NaN where all were or none. `gradient_norm`: float32 scalar, before clipping.
    `skipped`: on the host and equal on all ranks, why there was no update; None where there was one. Of a skipped step
    `sums` hold the rows read and their valid targets alone, and the two scalars are NaN.
    """

    step: int
    learning_rate: float
    sums: Tensor
    threshold: Tensor
    gradient_norm: Tensor
    skipped: str | None = None


@dataclass(frozen=True)
class TrainStep:
    """The optimiser step of a run: all of it that stays the same from step to step.

    Where `may_repeat_rows` is false, no row comes twice in a step. `row_name` is what a message calls a row.
    """

    engine: ZeroEngine
    objective: Objective
    world: World
    eos_id: int
    domain_count: int
    may_repeat_rows: bool
    row_name: Callable[[int], str] = str

    def __call__(self, micro_batches: Sequence[MicroBatch], moment: Moment, learning_rate: float) -> StepResult:
        """Trains on the selected targets of all ranks' micro-batches; every rank brings equally many.

        Where a criterion, a loss or the gradient is NaN or infinite on any rank, all of them skip the step: weights,
        optimiser and the memory of the objective stay as they were.
        """
        engine, world = self.engine, self.world
        visits = _visits(micro_batches, world, may_repeat_rows=self.may_repeat_rows)
        targets = [_targets(*visited, self.eos_id) for visited in zip(micro_batches, visits, strict=True)]

        def skipped(reason: str) -> StepResult:
            sums, nothing = self._sums_of_unused(micro_batches, targets), torch.full((), torch.nan, device=world.device)
            return StepResult(moment.step, learning_rate, sums, nothing, nothing, reason)

        try:
            plan = self.objective.plan_step(
                targets, moment, lambda number: engine.measure(micro_batches[number].tokens), all_reduce_sum
            )
        except NonFiniteCriterion as error:  # On all ranks, before any of them has run a pass with gradients.
            return skipped(why_unrankable(targets, error.places, self.row_name))
        # DeepSpeed averages over ranks and micro-steps; multiplied back, the sum is divided by the global count alone.
        scale = world.size * len(micro_batches) / plan.denominator.clamp(min=1)
        sums = sums_of_nothing(self.domain_count, world.device)
        outputs: list[HeadOutput] = []
        left_out = False
        for number, micro_batch in enumerate(micro_batches):
            output = engine.forward(micro_batch.tokens, plan.choices[number])
            # What is added is 0, or NaN where the sum is non-finite: an infinite loss can have a finite gradient. One
            # NaN makes the norm of the gradient NaN on all ranks, and their engines leave the update out.
            engine.backward(output.total * (scale + 0 * output.total.detach()))
            left_out = engine.step(learning_rate)
            outputs.append(output._replace(total=output.total.detach()))
            sums += self._sums(plan, number, outputs[-1], micro_batch, targets[number])
        if left_out:
            return skipped(why_left_out(targets, plan.choices, outputs, self.row_name))
        threshold = self.objective.end_step(plan, outputs)
        return StepResult(
            step=moment.step,
            learning_rate=learning_rate,
            sums=all_reduce_sum(sums),
            threshold=torch.full((), torch.nan, device=world.device) if threshold is None else threshold,
            gradient_norm=torch.as_tensor(engine.gradient_norm(), dtype=torch.float32, device=world.device),
        )

    def _sums(
        self, plan: StepPlan, number: int, output: HeadOutput, micro_batch: MicroBatch, targets: Targets
    ) -> Tensor:
        """What a micro-batch adds to the step's report."""
        choice, losses = plan.choices[number], output.losses
        measured = choice.measured.view_as(losses) if isinstance(choice, Known) else targets.valid
        if plan.losses is not None:
            losses, measured = plan.losses[number], targets.valid
        return selection_sums(
            output.total, losses, measured, output.mask, targets, micro_batch.domain, self.domain_count
        )

    def _sums_of_unused(self, micro_batches: Sequence[MicroBatch], targets: Sequence[Targets]) -> Tensor:
        """What a skipped step reports: its rows and their valid targets alone."""
        sums = sums_of_nothing(self.domain_count, self.world.device)
        for part, micro_batch in zip(targets, micro_batches, strict=True):
            sums += sums_of_unused(part, micro_batch.domain, self.domain_count)
        return all_reduce_sum(sums)


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
