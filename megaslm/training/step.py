"""One optimiser step: choose, forward, backward, update. The host reads the device at most once per micro-step.

A skipped step names its cause and the rows of the targets concerned.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from megaslm.engine.distributed import World, all_gather, all_reduce_sum, gather_objects
from megaslm.engine.zero import ZeroEngine
from megaslm.errors import NonFiniteCriterion
from megaslm.slm.choice import Choice, Deferred, Every, HeadOutput, Known
from megaslm.slm.keys import earlier_copies, row_of, target_keys
from megaslm.slm.objective import Objective
from megaslm.slm.rule import Moment, StepPlan
from megaslm.slm.targets import Targets
from megaslm.slm.telemetry import selection_sums, sums_of_unused
from megaslm.slm.valid_targets import valid_targets
from megaslm.stream.loader import MicroBatch
from megaslm.training.phases import Phase, untimed

_MOST_ROWS_NAMED = 10


@dataclass(frozen=True)
class StepResult:
    """The result of a step, still on the device.

    `sums`: see `megaslm.slm.telemetry`, over all ranks. `threshold`: float32 scalar, the value of the criterion from
    which targets were selected; NaN where all or none were selected. `gradient_norm`: float32 scalar, before clipping.
    `skipped`: on the host and equal on all ranks, why there was no update; None where there was one. For a skipped step
    `sums` hold only the rows read and their valid targets, and the two scalars are NaN. `second_pass_ratio`: of the
    micro-batches, those that had a forward pass without gradients before the one that trains.
    """

    step: int
    learning_rate: float
    sums: Tensor
    threshold: Tensor
    gradient_norm: Tensor
    skipped: str | None = None
    second_pass_ratio: float = 0.0


@dataclass(frozen=True)
class TrainStep:
    """The optimiser step of a run.

    If `may_repeat_rows` is false, no row comes twice in a step. `row_name` is the name of a row in messages. Where the
    plan needs the losses of all micro-batches first, `keeps_graphs` decides how: with it each micro-batch has one
    forward pass, whose graph is kept until its backward pass; without it a second forward pass. `ends` is called at the
    end of each phase.
    """

    engine: ZeroEngine
    objective: Objective
    world: World
    eos_id: int
    domain_count: int
    may_repeat_rows: bool
    row_name: Callable[[int], str] = str
    keeps_graphs: bool = False
    ends: Callable[[Phase], None] = untimed

    def __call__(self, micro_batches: Sequence[MicroBatch], moment: Moment, learning_rate: float) -> StepResult:
        """Trains on the selected targets of all ranks' micro-batches, equally many per rank.

        If a criterion, a loss or the gradient is NaN or infinite on any rank, all ranks skip the step: weights,
        optimiser and the memory of the objective stay unchanged.
        """
        engine, world = self.engine, self.world
        targets = self._targets(micro_batches)

        passed_twice: set[int] = set()

        def second_pass_ratio() -> float:
            return len(passed_twice) / len(micro_batches)

        def skipped(reason: str) -> StepResult:
            sums, nothing = self._sums_of_unused(micro_batches, targets), torch.full((), torch.nan, device=world.device)
            return StepResult(moment.step, learning_rate, sums, nothing, nothing, reason, second_pass_ratio())

        passed: dict[int, tuple[Deferred, HeadOutput]] = {}

        def measure(number: int) -> Tensor:
            self.ends("selection")
            tokens, bounds = micro_batches[number].tokens, micro_batches[number].document_bounds
            if self.keeps_graphs:
                deferred = Deferred()
                passed[number] = deferred, engine.forward(tokens, deferred, bounds)
                losses = passed[number][1].losses
            else:
                losses = engine.measure(tokens, bounds)
                passed_twice.add(number)
            self.ends("forward")
            return losses

        try:
            plan = self.objective.plan_step(targets, moment, measure, all_reduce_sum)
        except NonFiniteCriterion as error:  # Raised on all ranks, before any backward pass.
            passed.clear()
            return skipped(why_unrankable(targets, error.places, self.row_name))
        self.ends("selection")
        # DeepSpeed averages over ranks and micro-steps. The scale undoes that: only the global count divides the sum.
        scale = world.size * len(micro_batches) / plan.denominator.clamp(min=1)
        sums: list[Tensor] = []
        outputs: list[HeadOutput] = []
        left_out = False
        for number, micro_batch in enumerate(micro_batches):
            choice = plan.choices[number]
            if number in passed and isinstance(choice, Known):
                deferred, output = passed.pop(number)
                output = output.decided(deferred, choice)
            else:
                output = engine.forward(micro_batch.tokens, choice, micro_batch.document_bounds)
            self.ends("forward")
            # The added term is 0, or NaN where the sum is non-finite: an infinite loss can have a finite gradient. One
            # NaN makes the gradient norm NaN on all ranks, and their engines leave the update out.
            engine.backward(output.total * (scale + 0 * output.total.detach()))
            self.ends("backward")
            left_out = engine.step(learning_rate)
            self.ends("optimizer")
            outputs.append(output._replace(total=output.total.detach()))
            sums.append(self._sums(plan, number, outputs[-1], micro_batch, targets[number]))
            self.ends("other")
        if left_out:
            return skipped(why_left_out(targets, plan.choices, outputs, self.row_name))
        threshold = self.objective.end_step(plan, outputs)
        return StepResult(
            step=moment.step,
            learning_rate=learning_rate,
            sums=all_reduce_sum(reduce(torch.add, sums)),
            threshold=torch.full((), torch.nan, device=world.device) if threshold is None else threshold,
            gradient_norm=torch.as_tensor(engine.gradient_norm(), dtype=torch.float32, device=world.device),
            second_pass_ratio=second_pass_ratio(),
        )

    def _targets(self, micro_batches: Sequence[MicroBatch]) -> list[Targets]:
        """The targets of each micro-batch. Keys count how often a row was read: in earlier epochs, and in this step."""
        copies: Sequence[Tensor | int] = [0] * len(micro_batches)
        if self.may_repeat_rows:
            rows = [micro_batch.rows for micro_batch in micro_batches]
            copies = earlier_copies(torch.cat(rows), self.world.rank, all_gather).split([len(part) for part in rows])
        return [
            Targets(
                valid=valid_targets(part.tokens, self.eos_id, part.target_mask),
                keys=target_keys(part.rows, part.visit + earlier, part.tokens.shape[1] - 1),
                ref_loss=part.ref_loss,
                ref_entropy=part.ref_entropy,
                selected=part.selected,
            )
            for part, earlier in zip(micro_batches, copies, strict=True)
        ]

    def _sums(
        self, plan: StepPlan, number: int, output: HeadOutput, micro_batch: MicroBatch, targets: Targets
    ) -> Tensor:
        choice = plan.choices[number]
        measured = choice.measured.view_as(output.mask) if isinstance(choice, Known) else targets.valid
        if plan.losses is not None:
            output, measured = output._replace(losses=plan.losses[number]), targets.valid
        bounds = micro_batch.document_bounds
        return selection_sums(output, measured, targets, micro_batch.domain, self.domain_count, bounds)

    def _sums_of_unused(self, micro_batches: Sequence[MicroBatch], targets: Sequence[Targets]) -> Tensor:
        """The sums of a skipped step: only its rows and their valid targets."""
        sums = [
            sums_of_unused(part, micro_batch.domain, self.domain_count, micro_batch.document_bounds)
            for part, micro_batch in zip(targets, micro_batches, strict=True)
        ]
        return all_reduce_sum(reduce(torch.add, sums))


def why_unrankable(targets: Sequence[Targets], places: Sequence[int], row_name: Callable[[int], str]) -> str:
    """Why targets cannot be ranked, in one sentence, the same on all ranks. Contains collectives.

    Args:
        targets: of this rank's micro-batches.
        places: indices of the targets that cannot be ranked, counted through all micro-batches.
        row_name: the name of a row in messages.
    """
    keys = _keys(targets)
    return _sentence(unrankable=keys[list(places)], without_loss=keys[:0], row_name=row_name)


def why_left_out(
    targets: Sequence[Targets], choices: Sequence[Choice], outputs: Sequence[HeadOutput], row_name: Callable[[int], str]
) -> str:
    """Why the update was left out after the passes, in one sentence, the same on all ranks. Contains collectives.

    Args:
        targets: of this rank's micro-batches.
        choices: the choice of each micro-batch.
        outputs: the head's output of each micro-batch.
        row_name: the name of a row in messages.
    """
    keys = _keys(targets)
    chosen = torch.cat([output.mask.flatten() for output in outputs])
    finite = torch.isfinite(torch.cat([output.losses.flatten() for output in outputs]))
    unrankable = torch.cat([_unrankable(*pair) for pair in zip(choices, outputs, strict=True)])
    return _sentence(unrankable=keys[unrankable], without_loss=keys[chosen & ~finite], row_name=row_name)


def _keys(targets: Sequence[Targets]) -> Tensor:
    return torch.cat([part.keys.flatten() for part in targets])


def _unrankable(choice: Choice, output: HeadOutput) -> Tensor:
    """(T,) bool. All false for a choice that was made before the passes, or that takes every target."""
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
    """The number of targets, and their first rows: one more than are named."""
    return len(keys), row_of(keys).unique()[: _MOST_ROWS_NAMED + 1].tolist()
