"""One optimiser step: choose, forward, backward, update. The host reads the device at most once per micro-step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megaslm.engine.distributed import World, all_gather, all_reduce_sum
from megaslm.engine.zero import ZeroEngine
from megaslm.errors import NonFiniteCriterion
from megaslm.slm.choice import Choice, Deferred, HeadOutput, Known
from megaslm.slm.keys import earlier_copies, target_keys
from megaslm.slm.measure import Measure, Measured
from megaslm.slm.objective import Objective
from megaslm.slm.rule import Moment, StepPlan
from megaslm.slm.spans import SpanRule
from megaslm.slm.targets import Targets
from megaslm.slm.telemetry import selection_sums, sums_of_unused
from megaslm.slm.valid_targets import valid_targets
from megaslm.stream.loader import MicroBatch
from megaslm.training.filter_watch import FilterWatch
from megaslm.training.phases import Phase, untimed
from megaslm.training.skipped_step import why_left_out, why_unsortable


@dataclass(frozen=True)
class StepResult:
    """The result of a step, still on the device.

    `sums`: see `megaslm.slm.telemetry`, over all ranks. `threshold`: float32 scalar, the value of the criterion from
    which targets were selected; NaN where all or none were selected. `gradient_norm`: float32 scalar, before clipping.
    `skipped`: on the host and equal on all ranks, why there was no update; None where there was one. For a skipped step
    `sums` hold only the rows read and their valid targets, and the two scalars are NaN. `second_pass_ratio`: of the
    micro-batches, those that had a forward pass without gradients before the one that trains. `backward_cosine`: see
    `FilterWatch.end`.
    """

    step: int
    learning_rate: float
    sums: Tensor
    threshold: Tensor
    gradient_norm: Tensor
    skipped: str | None = None
    second_pass_ratio: float = 0.0
    backward_cosine: float | None = None


@dataclass(frozen=True)
class TrainStep:
    """The optimiser step of a run.

    If `may_repeat_rows` is false, no row comes twice in a step. `row_name` is the name of a row in messages. Where the
    plan needs the losses of all micro-batches first, `keeps_graphs` decides how: with it each micro-batch has one
    forward pass, whose graph is kept until its backward pass; without it a second forward pass. With `by_entropy` these
    measure entropies, too. `spans` is the rule of targets that are sorted by means; None where each is sorted by its
    own value. `filter_watch` decides whether the backward pass leaves tokens out; None where it never does. `ends` is
    called at the end of each phase.
    """

    engine: ZeroEngine
    objective: Objective
    world: World
    eos_id: int
    domain_count: int
    may_repeat_rows: bool
    row_name: Callable[[int], str] = str
    keeps_graphs: bool = False
    by_entropy: bool = False
    spans: SpanRule | None = None
    filter_watch: FilterWatch | None = None
    ends: Callable[[Phase], None] = untimed

    def __call__(self, micro_batches: Sequence[MicroBatch], moment: Moment, learning_rate: float) -> StepResult:
        """Trains on the selected targets of all ranks' micro-batches, equally many per rank and of equally many rows.

        If a criterion, a loss or the gradient is NaN or infinite on any rank, all ranks skip the step: weights,
        optimiser and the memory of the objective stay unchanged.
        """
        if self.filter_watch is not None:
            self.filter_watch.begin(moment.step)
        batch = MicroBatch.joined(micro_batches)
        targets = self._targets(batch)
        passes = ForwardPasses(self.engine, micro_batches, self.keeps_graphs, self.by_entropy, self.ends)
        nothing = torch.full((), torch.nan, device=self.world.device)

        def skipped(reason: str) -> StepResult:
            sums = all_reduce_sum(sums_of_unused(targets, batch.domain, self.domain_count, batch.document_bounds))
            repeated_ratio = passes.repeated / len(micro_batches)
            return StepResult(moment.step, learning_rate, sums, nothing, nothing, reason, repeated_ratio)

        try:
            plan = self.objective.plan_step(targets, len(micro_batches), moment, passes.measure, all_reduce_sum)
        except NonFiniteCriterion as error:  # Raised on all ranks, before any backward pass.
            return skipped(why_unsortable(targets, error.places, self.row_name))
        self.ends("selection")
        output, is_left_out = self._update(plan, passes, learning_rate)
        if is_left_out:
            return skipped(why_left_out(targets, plan.choices, output, self.row_name))
        threshold = self.objective.end_step(plan, output)
        cosine = None if self.filter_watch is None else self.filter_watch.end(all_reduce_sum)
        sums = all_reduce_sum(self._sums(plan, output, targets, batch))
        return StepResult(
            step=moment.step,
            learning_rate=learning_rate,
            sums=sums,
            threshold=nothing if threshold is None else threshold,
            gradient_norm=torch.as_tensor(self.engine.gradient_norm(), dtype=torch.float32, device=self.world.device),
            second_pass_ratio=passes.repeated / len(micro_batches),
            backward_cosine=cosine,
        )

    def _targets(self, batch: MicroBatch) -> Targets:
        """The targets of the step's rows. Keys count how often a row was read: in earlier epochs, and in this step."""
        visits: Tensor | int = batch.visit
        if self.may_repeat_rows:
            visits = visits + earlier_copies(batch.rows, self.world.rank, all_gather)
        before, after = (None, None) if self.spans is None else self.spans.bounds(batch.tokens)
        return Targets(
            valid=valid_targets(batch.tokens, self.eos_id, batch.columns.get("target_mask")),
            keys=target_keys(batch.rows, visits, batch.tokens.shape[1] - 1),
            columns={**batch.columns, "domain": batch.domain[:, None].expand_as(batch.tokens[:, 1:])},
            before=before,
            after=after,
        )

    def _update(self, plan: StepPlan, passes: "ForwardPasses", learning_rate: float) -> tuple[HeadOutput, bool]:
        """Makes the passes that train and updates the weights.

        Returns:
            The head's output for the step, and whether the update was left out, see `ZeroEngine.step`.
        """
        denominator = plan.denominator
        outputs: list[HeadOutput] = []
        is_left_out = False
        for number, choice in enumerate(plan.choices):
            output = passes.train(number, choice)
            self.ends("forward")
            if denominator is None:
                denominator = all_reduce_sum(output.mask.sum())
            # DeepSpeed averages over ranks and micro-steps. The scale undoes that: only the global count divides the
            # sum.
            scale = self.world.size * len(plan.choices) / denominator.clamp(min=1)
            # The added term is 0, or NaN where the sum is non-finite: an infinite loss can have a finite gradient. One
            # NaN makes the gradient norm NaN on all ranks, and their engines leave the update out.
            self.engine.backward(output.total * (scale + 0 * output.total.detach()))
            self.ends("backward")
            is_left_out = self.engine.step(learning_rate)
            self.ends("optimizer")
            outputs.append(output._replace(total=output.total.detach()))
        return HeadOutput.of_step(outputs), is_left_out

    def _sums(self, plan: StepPlan, output: HeadOutput, targets: Targets, batch: MicroBatch) -> Tensor:
        """The sums that this rank's rows add to those of the step."""
        if plan.losses is not None:
            output = output._replace(losses=plan.losses)
        measured = targets.valid if plan.measures_rest else output.mask
        return selection_sums(output, measured, targets, batch.domain, self.domain_count, batch.document_bounds)


@dataclass(eq=False)
class ForwardPasses:
    """The forward passes of a step: first those that measure losses for its plan, if it needs them; then those that
    train. `keeps_graphs`, `by_entropy`, `ends`: see `TrainStep`. `repeated`: micro-batches with a pass of either kind.
    """

    engine: ZeroEngine
    micro_batches: Sequence[MicroBatch]
    keeps_graphs: bool
    by_entropy: bool
    ends: Callable[[Phase], None]
    repeated: int = 0
    _kept: dict[int, tuple[Deferred, HeadOutput]] = field(default_factory=dict)

    def measure(self, number: int) -> Measured:
        """See `MeasureLosses`."""
        self.ends("selection")
        micro_batch = self.micro_batches[number]
        if self.keeps_graphs:
            deferred = Deferred(by_entropy=self.by_entropy)
            output = self.engine.forward(micro_batch.tokens, deferred, micro_batch.document_bounds)
            self._kept[number] = deferred, output
            measured = Measured(output.losses, deferred.entropies)
        else:
            what = Measure(entropies=self.by_entropy)
            measured = self.engine.measure(micro_batch.tokens, micro_batch.document_bounds, what)
            self.repeated += 1
        self.ends("forward")
        return measured

    def train(self, number: int, choice: Choice) -> HeadOutput:
        """The output for a choice, with the graph that `measure` kept or that of another pass."""
        if number in self._kept and isinstance(choice, Known):
            deferred, output = self._kept.pop(number)
            return output.decided(deferred, choice)
        micro_batch = self.micro_batches[number]
        return self.engine.forward(micro_batch.tokens, choice, micro_batch.document_bounds)
