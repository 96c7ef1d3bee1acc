"""What one optimiser step trains on: the selected targets of all its micro-batches, and the count that divides them.

The step's loss is the sum of the selected losses over all ranks and micro-steps, divided by their number: a sum over a
global count, never a mean of means (Rho-1, equation 4). The count follows from the tokens and the reference alone, so
it is known before the first backward pass. The plan of a step depends on the criterion, the scope and the mode.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol, cast

import torch
from torch import Tensor

from megaslm.errors import NonFiniteCriterion
from megaslm.slm.choice import Choice, Every, HeadOutput, Known
from megaslm.slm.dynamic import AboveThreshold, RankedTargets, TopOfGroups, forecast_from
from megaslm.slm.keys import HASH_BITS
from megaslm.slm.rule import MeasureLosses, Moment, SelectionRule, StepPlan, Threshold
from megaslm.slm.static import StaticRanking, StaticSelection, select_static
from megaslm.slm.targets import LossCriterion, Targets, joined
from megaslm.slm.threshold import (
    AT_START,
    EXACT_STEPS,
    NO_THRESHOLD,
    SORT_KEY_BITS,
    RecentThresholds,
    SelectionState,
    corrected,
    sort_keys_of,
    value_of_sort_key,
)
from megaslm.slm.topk import (
    AllReduceSum,
    find_threshold,
    keep_count,
    kept,
    on_this_rank_alone,
    ordered_image,
    select_top,
    value_of_image,
)


@dataclass(frozen=True, eq=False)
class StepPlanner:
    """Plans one step under a rule. `ratio`: k of this step."""

    rule: SelectionRule
    ratio: Decimal
    step: int
    micro_batches: list[Targets]
    measure_losses: MeasureLosses
    all_reduce_sum: AllReduceSum

    def over_all(self, recent: RecentThresholds) -> StepPlan:
        """The exact top of the whole step."""
        ranked = self._ranked(joined(self.micro_batches))
        count = kept(ranked.targets.valid, ranked.eligible, self.ratio, self.all_reduce_sum)
        if len(self.micro_batches) == 1:
            forecast = forecast_from(recent, ranked, float(self.ratio), surely=False)
            choice = TopOfGroups(ranked, count, self.all_reduce_sum, self.all_reduce_sum, forecast)
            return StepPlan(
                (choice,),
                count[0],
                threshold_of=lambda out: self._exact_threshold(out[0].threshold, out[0].losses, ranked, count),
            )
        # The first backward pass needs every loss of the step, hence all forward passes come first.
        losses = tuple(self.measure_losses(number) for number in range(len(self.micro_batches)))
        everything = torch.cat([part.flatten() for part in losses])
        values = ranked.values(everything)
        top = select_top(values, ranked.targets.keys, ranked.eligible, count, self.all_reduce_sum)
        choices = self._known(self._split(top.mask), self._split(ranked.unrankable(values)), measure_rest=False)
        return StepPlan(
            choices,
            count[0],
            losses=losses,
            threshold_of=lambda _: self._exact_threshold(top.threshold, everything, ranked, count),
        )

    def above_threshold(self, recent: RecentThresholds) -> StepPlan:
        """Targets above the threshold that the steps before forecast. k·N stands for the number selected."""
        everything = self._ranked(joined(self.micro_batches))
        valid, eligible = self.all_reduce_sum(torch.stack([everything.targets.valid.sum(), everything.eligible.sum()]))
        count = keep_count(valid, self.ratio).minimum(eligible)
        known = recent.forecast(valid.device)
        choices = []
        for targets in self.micro_batches:
            ranked = self._ranked(targets)
            forecast = forecast_from(recent, ranked, float(self.ratio), surely=True)
            choices.append(AboveThreshold(ranked, known, self.all_reduce_sum, forecast))

        def threshold_of(outputs: Sequence[HeadOutput]) -> Threshold:
            surplus = recent.surplus_with(self._sum([output.mask.sum() for output in outputs]), count)
            values = everything.values(torch.cat([output.losses.flatten() for output in outputs]))
            return Threshold(self._sort_key_at(values, everything, corrected(count, valid, surplus)), surplus)

        denominator = (valid.double() * float(self.ratio)).minimum(eligible.double())
        return StepPlan(tuple(choices), denominator, known_threshold=known, threshold_of=threshold_of)

    def within_micro_batches(self, recent: RecentThresholds) -> StepPlan:
        """The top of each row, or of each rank's micro-batch."""
        ranked = [self._ranked(self._in_groups(targets)) for targets in self.micro_batches]
        counts = [kept(groups.targets.valid, groups.eligible, self.ratio, on_this_rank_alone) for groups in ranked]
        choices = tuple(
            TopOfGroups(
                groups,
                count,
                on_this_rank_alone,
                self.all_reduce_sum,
                forecast_from(recent, groups, float(self.ratio), surely=False),
            )
            for groups, count in zip(ranked, counts, strict=True)
        )
        return StepPlan(
            choices,
            self.all_reduce_sum(torch.stack([count.sum() for count in counts]).sum()),
            threshold_of=lambda outputs: self._mean_threshold([output.threshold for output in outputs], counts),
        )

    def by_static_criterion(self) -> StepPlan:
        """The top by a criterion that does not depend on the model."""
        selections = self._static_selections(cast(StaticRanking, self.rule.criterion))
        choices = self._known(
            [selection.mask for selection in selections],
            [selection.unrankable for selection in selections],
            measure_rest=self.rule.measure_rest,
        )
        counts = [selection.count for selection in selections]
        thresholds = [selection.threshold for selection in selections if selection.threshold is not None]
        total = counts[0][0] if self.rule.scope == "batch" else self._sum([count.sum() for count in counts])
        return StepPlan(
            choices, total, threshold_of=(lambda _: self._mean_threshold(thresholds, counts)) if thresholds else None
        )

    def by_mask(self, masks: Sequence[Tensor]) -> StepPlan:
        """The targets of a mask that was made before the run; (B, L) bool per micro-batch."""
        selected = [mask & targets.valid for mask, targets in zip(masks, self.micro_batches, strict=True)]
        rankable = [torch.zeros_like(mask) for mask in selected]
        choices = self._known(selected, rankable, measure_rest=self.rule.measure_rest)
        return StepPlan(choices, self._sum([mask.sum() for mask in selected]))

    def _static_selections(self, criterion: StaticRanking) -> list[StaticSelection]:
        """The selection of each micro-batch. Under scope batch all of them have the counts of the step."""

        def select(groups: Targets, all_reduce_sum: AllReduceSum) -> StaticSelection:
            return select_static(
                criterion,
                groups,
                self.ratio,
                self.rule.max_ref_loss,
                seed=self.rule.seed,
                step=self.step,
                all_reduce_sum=all_reduce_sum,
            )

        if self.rule.scope != "batch":
            return [select(self._in_groups(targets), on_this_rank_alone) for targets in self.micro_batches]
        step = select(joined(self.micro_batches), self.all_reduce_sum)
        parts = zip(self._split(step.mask), self._split(step.unrankable), strict=True)
        return [StaticSelection(mask, unrankable, step.count, step.threshold) for mask, unrankable in parts]

    def _known(
        self, masks: Sequence[Tensor], unrankable: Sequence[Tensor], *, measure_rest: bool
    ) -> tuple[Choice, ...]:
        """Turns masks into choices. The host reads their numbers of rows, once per step."""
        rest = [
            targets.valid.flatten() & ~mask.flatten() if measure_rest else torch.zeros_like(mask.flatten())
            for targets, mask in zip(self.micro_batches, masks, strict=True)
        ]
        bad = torch.stack([part.sum() for part in unrankable])
        sizes = [torch.stack([mask.sum(), others.sum()]) for mask, others in zip(masks, rest, strict=True)]
        stop, *counts = torch.cat([self.all_reduce_sum(bad.sum())[None], *sizes]).tolist()
        if stop:
            raise NonFiniteCriterion(torch.cat([part.flatten() for part in unrankable]).nonzero().squeeze(1).tolist())
        return tuple(
            Known(
                mask.flatten(),
                mask.flatten().nonzero_static(size=selected).squeeze(1),
                others.nonzero_static(size=unselected).squeeze(1),
            )
            for mask, others, selected, unselected in zip(masks, rest, counts[::2], counts[1::2], strict=True)
        )

    def _ranked(self, targets: Targets) -> RankedTargets:
        criterion = cast(LossCriterion, self.rule.criterion)
        return RankedTargets(targets, targets.eligible(self.rule.max_ref_loss), criterion)

    def _in_groups(self, targets: Targets) -> Targets:
        """The targets as (G, n). A group is a row under `sequence`, and all of them under the other scopes."""
        return targets if self.rule.scope == "sequence" else joined([targets])

    def _sum(self, parts: Sequence[Tensor]) -> Tensor:
        return self.all_reduce_sum(torch.stack(list(parts)).sum())

    def _split(self, step: Tensor) -> list[Tensor]:
        return list(step.flatten().split([targets.valid.numel() for targets in self.micro_batches]))

    def _exact_threshold(self, threshold: Tensor, losses: Tensor, ranked: RankedTargets, count: Tensor) -> Threshold:
        """The threshold of an exact step. Only `running` needs to tell equal values apart."""
        if self.rule.mode == "running":
            return Threshold(self._sort_key_at(ranked.values(losses), ranked, count[0]))
        return Threshold((threshold << HASH_BITS).where(count > 0, NO_THRESHOLD)[0])

    def _sort_key_at(self, values: Tensor, ranked: RankedTargets, count: Tensor) -> Tensor:
        """The sort key of the last of the `count` largest over all ranks."""
        sort_keys = sort_keys_of(values.view_as(ranked.eligible), ranked.targets.keys)
        threshold, _ = find_threshold(sort_keys, SORT_KEY_BITS, ranked.eligible, count[None], self.all_reduce_sum)
        return threshold[0].where(count > 0, NO_THRESHOLD)

    def _mean_threshold(self, thresholds: Sequence[Tensor], counts: Sequence[Tensor]) -> Threshold:
        """The mean of the groups' thresholds, over groups that have one."""
        was_cut = torch.cat(list(counts)) > 0
        values = value_of_image(torch.cat(list(thresholds))).double().where(was_cut, 0.0)
        total, groups = self.all_reduce_sum(torch.stack([values.sum(), was_cut.sum().double()]))
        mean = ordered_image((total / groups.clamp(min=1)).float()) << HASH_BITS
        return Threshold(mean.where(groups > 0, NO_THRESHOLD))


def plan_for_all(micro_batches: Sequence[Targets], all_reduce_sum: AllReduceSum) -> StepPlan:
    """The plan that selects every valid target."""
    count = all_reduce_sum(torch.stack([targets.valid.sum() for targets in micro_batches]).sum())
    return StepPlan(tuple(Every(targets.valid.flatten()) for targets in micro_batches), count)


class Objective(Protocol):
    """Decides which targets a step trains on."""

    def plan_step(
        self,
        micro_batches: Sequence[Targets],
        moment: Moment,
        measure_losses: MeasureLosses,
        all_reduce_sum: AllReduceSum,
    ) -> StepPlan:
        """Plans one step. Called on every rank with the same number of micro-batches; contains collectives."""
        ...

    def end_step(self, plan: StepPlan, outputs: Sequence[HeadOutput]) -> Tensor | None:
        """Records the head's output for each micro-batch. Returns the value from which targets were selected, a float32
        scalar; NaN where there were none to select.

        Called on every rank; contains collectives.
        """
        ...

    def state(self) -> SelectionState:
        """What a resumed run needs to select the same targets; waits for the device."""
        ...


class CausalObjective:
    """Every valid target: causal language modeling, or fine-tuning, where a target mask leaves only the assistant's."""

    def plan_step(
        self,
        micro_batches: Sequence[Targets],
        moment: Moment,
        measure_losses: MeasureLosses,
        all_reduce_sum: AllReduceSum,
    ) -> StepPlan:
        """Selects every valid target."""
        return plan_for_all(micro_batches, all_reduce_sum)

    def end_step(self, plan: StepPlan, outputs: Sequence[HeadOutput]) -> None:
        """Causal language modeling has no threshold."""
        return

    def state(self) -> SelectionState:
        """There is no state."""
        return AT_START


class SelectiveObjective:
    """Selective language modeling: the top k of the targets by a criterion (Rho-1, section 2.2)."""

    def __init__(self, rule: SelectionRule, state: SelectionState = AT_START) -> None:
        self._rule = rule
        self._recent = RecentThresholds(state)

    def plan_step(
        self,
        micro_batches: Sequence[Targets],
        moment: Moment,
        measure_losses: MeasureLosses,
        all_reduce_sum: AllReduceSum,
    ) -> StepPlan:
        """Selects by the rule.

        Raises:
            NonFiniteCriterion: a target cannot be ranked.
        """
        ratio = self._rule.keep_ratio.at(moment.tokens)
        if ratio == 1 and self._rule.max_ref_loss is None:
            return plan_for_all(micro_batches, all_reduce_sum)
        step = StepPlanner(self._rule, ratio, moment.step, list(micro_batches), measure_losses, all_reduce_sum)
        if self._rule.criterion in ("reference", "entropy", "reference_and_entropy"):
            masks = [targets.selected for targets in micro_batches if targets.selected is not None]
            return step.by_mask(masks) if masks else step.by_static_criterion()
        if self._rule.criterion == "random":
            return step.by_static_criterion()
        if self._rule.scope != "batch":
            return step.within_micro_batches(self._recent)
        if self._rule.mode == "running" and len(self._recent) >= EXACT_STEPS:
            return step.above_threshold(self._recent)
        return step.over_all(self._recent)

    def end_step(self, plan: StepPlan, outputs: Sequence[HeadOutput]) -> Tensor | None:
        """Records the threshold."""
        if plan.threshold_of is None:
            return None
        threshold = plan.threshold_of(outputs)
        self._recent.add(threshold.sort_key, threshold.surplus)
        selected_from = threshold.sort_key if plan.known_threshold is None else plan.known_threshold
        return value_of_sort_key(selected_from).where(selected_from != NO_THRESHOLD, torch.nan)

    def state(self) -> SelectionState:
        """The recent thresholds."""
        return self._recent.state()
