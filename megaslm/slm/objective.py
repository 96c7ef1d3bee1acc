"""What one optimiser step trains on: the selected targets of all its micro-batches, and the count that divides them.

The step's loss is the sum of the selected losses over all ranks and micro-steps, divided by their number: a sum over a
global count, never a mean of means (Rho-1, equation 4). The count is known before the first backward pass: it follows
from the tokens and the reference alone, or, under a fixed threshold, from the losses of all micro-steps. The plan of a
step depends on the criterion, the scope, the mode and the policy.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol, cast

import torch
from torch import Tensor

from megaslm.errors import NonFiniteCriterion
from megaslm.slm.choice import (
    AboveThreshold,
    Choice,
    Every,
    Forecast,
    HeadOutput,
    Known,
    TopOfGroups,
    forecast_from,
)
from megaslm.slm.criterion import Candidates, Draw, formula_of
from megaslm.slm.keys import HASH_BITS
from megaslm.slm.measure import Measured
from megaslm.slm.rule import MeasureLosses, Moment, SelectionRule, StepPlan, Threshold, selects_all
from megaslm.slm.selection import StaticRule, select_by, select_static, threshold_image
from megaslm.slm.targets import Targets, in_any_group
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
    Quota,
    Ratio,
    find_threshold,
    keep_count,
    kept,
    on_this_rank_alone,
    ordered_image,
    value_of_image,
)


@dataclass(frozen=True, eq=False)
class StepPlanner:
    """Plans one step under a rule.

    `ratio`: k of this step, or of its domains. `targets`: those of all `micro_steps` micro-batches.
    """

    rule: SelectionRule
    ratio: Ratio
    step: int
    targets: Targets
    micro_steps: int
    measure_losses: MeasureLosses
    all_reduce_sum: AllReduceSum

    def over_all(self, recent: RecentThresholds) -> StepPlan:
        """The exact selection in the whole step."""
        candidates = self._candidates(self.rule.whole_step(self.targets))
        if self.micro_steps > 1:
            return self._after_all_losses(candidates)
        if self.rule.policy.threshold is not None:
            fixed = self._fixed_threshold(self.rule.policy.threshold)
            choice = AboveThreshold(candidates, self.all_reduce_sum, None, fixed)
            return StepPlan((choice,), None, known_threshold=fixed, threshold_of=lambda _: Threshold(fixed))
        quota = self._kept(candidates, self.all_reduce_sum)
        forecast = self._forecast(recent, candidates, surely=False)
        top = TopOfGroups(candidates, self.all_reduce_sum, forecast, quota, self.all_reduce_sum)
        return StepPlan(
            (top,),
            quota.count.sum(),
            threshold_of=lambda output: self._exact_threshold(output.threshold, output.losses, candidates, quota.count),
        )

    def _after_all_losses(self, candidates: Candidates) -> StepPlan:
        """The first backward pass needs every loss of the step, hence all forward passes come first."""
        measured = Measured.joined([self.measure_losses(number) for number in range(self.micro_steps)])
        values, policy = candidates.values(measured.losses, measured.entropies), self.rule.policy
        found = select_by(policy, values, candidates.targets, candidates.eligible, self.ratio, self.all_reduce_sum)
        return StepPlan(
            self._known(found.mask, found.unsortable, measure_rest=False),
            found.count.sum(),
            losses=measured.losses,
            known_threshold=None if policy.threshold is None else self._fixed_threshold(policy.threshold),
            threshold_of=lambda _: self._exact_threshold(found.threshold, measured.losses, candidates, found.count),
        )

    def above_threshold(self, recent: RecentThresholds) -> StepPlan:
        """Targets above the threshold that the steps before forecast. k·N stands for the number selected."""
        assert isinstance(self.ratio, Decimal), "domains have no threshold in common"
        everything = self._candidates(self.targets.in_groups(1))
        valid, eligible = self.all_reduce_sum(torch.stack([everything.targets.valid.sum(), everything.eligible.sum()]))
        count = keep_count(valid, self.ratio).minimum(eligible)
        known = recent.forecast(valid.device)
        choices = []
        for targets in self.targets.micro_batches(self.micro_steps):
            candidates = self._candidates(targets)
            forecast = self._forecast(recent, candidates, surely=True)
            choices.append(AboveThreshold(candidates, self.all_reduce_sum, forecast, known))

        def threshold_of(output: HeadOutput) -> Threshold:
            surplus = recent.surplus_with(self.all_reduce_sum(output.mask.sum()), count)
            values = everything.values(output.losses)
            return Threshold(self._sort_key_at(values, everything, corrected(count, valid, surplus)), surplus)

        denominator = (valid.double() * float(self.ratio)).minimum(eligible.double())
        return StepPlan(tuple(choices), denominator, known_threshold=known, threshold_of=threshold_of)

    def within_micro_batches(self, recent: RecentThresholds) -> StepPlan:
        """The top of each row, or of each rank's micro-batch."""
        choices, counts = [], []
        for targets in self.targets.micro_batches(self.micro_steps):
            candidates = self._candidates(targets if self.rule.scope == "sequence" else targets.in_groups(1))
            quota = self._kept(candidates, on_this_rank_alone)
            forecast = self._forecast(recent, candidates, surely=False)
            choices.append(TopOfGroups(candidates, self.all_reduce_sum, forecast, quota, on_this_rank_alone))
            counts.append(quota.count)
        of_groups = torch.cat(counts)
        return StepPlan(
            tuple(choices),
            self.all_reduce_sum(of_groups.sum()),
            threshold_of=lambda output: self._mean_threshold(output.threshold, of_groups),
        )

    def by_static_criterion(self) -> StepPlan:
        """The selection by a criterion that does not depend on the model."""
        groups_of = {"microbatch": self.micro_steps, "sequence": len(self.targets.valid)}
        over_ranks = self.rule.scope == "batch"
        if over_ranks:
            groups = self.rule.whole_step(self.targets)
        else:
            groups = self.targets.in_groups(groups_of[self.rule.scope])
        selection = select_static(
            cast(StaticRule, self.rule.criterion),
            groups,
            self.ratio,
            self.rule.max_ref_loss,
            policy=self.rule.policy,
            seed=self.rule.seed,
            step=self.step,
            all_reduce_sum=self.all_reduce_sum if over_ranks else on_this_rank_alone,
        )
        threshold, count = selection.threshold, selection.count
        return StepPlan(
            self._known(selection.mask, selection.unsortable, measure_rest=self.rule.measure_rest),
            count.sum() if over_ranks else self.all_reduce_sum(count.sum()),
            measures_rest=self.rule.measure_rest,
            threshold_of=None if threshold is None else lambda _: self._mean_threshold(threshold, count),
        )

    def by_mask(self, mask: Tensor) -> StepPlan:
        """The targets of an (R, L) bool mask that was made before the run."""
        selected = mask & self.targets.valid
        choices = self._known(selected, torch.zeros_like(selected), measure_rest=self.rule.measure_rest)
        return StepPlan(choices, self.all_reduce_sum(selected.sum()), measures_rest=self.rule.measure_rest)

    def _known(self, mask: Tensor, unsortable: Tensor, *, measure_rest: bool) -> tuple[Choice, ...]:
        """Turns the mask of the step into choices. The host reads their numbers of rows, once per step."""
        mask, unsortable = (in_any_group(marks, self.targets.valid.numel()) for marks in (mask, unsortable))
        valid, masks = self.targets.valid.view(self.micro_steps, -1), mask.view(self.micro_steps, -1)
        rests = valid & ~masks if measure_rest else torch.zeros_like(masks)
        stop = self.all_reduce_sum(unsortable.sum())
        stop, *counts = torch.cat([stop[None], masks.sum(1), rests.sum(1)]).tolist()
        if stop:
            raise NonFiniteCriterion(unsortable.nonzero().squeeze(1).tolist())
        sizes = zip(counts[: self.micro_steps], counts[self.micro_steps :], strict=True)
        return tuple(
            Known(
                mask,
                mask.nonzero_static(size=selected).squeeze(1),
                rest.nonzero_static(size=others).squeeze(1),
            )
            for mask, rest, (selected, others) in zip(masks, rests, sizes, strict=True)
        )

    def _candidates(self, targets: Targets) -> Candidates:
        formula, temperature = formula_of(self.rule.criterion), self.rule.policy.temperature
        draw = None if temperature is None else Draw(temperature, self.rule.seed, self.step)
        return Candidates(targets, targets.eligible(self.rule.max_ref_loss), formula, draw)

    def _kept(self, candidates: Candidates, rank_sum: AllReduceSum) -> Quota:
        return kept(candidates.targets.valid, candidates.eligible, self.ratio, rank_sum, self.rule.policy.skip_ratio)

    def _forecast(self, recent: RecentThresholds, candidates: Candidates, *, surely: bool) -> Forecast | None:
        """None where one threshold does not tell what is selected: it tells only where a band ends, and domains have
        thresholds of their own."""
        if self.rule.policy.skip_ratio or isinstance(self.ratio, tuple):
            return None
        return forecast_from(recent, candidates, float(self.ratio), surely=surely)

    def _fixed_threshold(self, threshold: float) -> Tensor:
        """The sort key of a value in nats, an int64 scalar."""
        return threshold_image(threshold, self.targets.valid.device) << HASH_BITS

    def _exact_threshold(
        self, threshold: Tensor | None, losses: Tensor, candidates: Candidates, count: Tensor
    ) -> Threshold:
        """The threshold of an exact step; the mean of domains. Only `running` needs to tell equal values apart."""
        if self.rule.mode == "running":
            return Threshold(self._sort_key_at(candidates.values(losses), candidates, count[0]))
        assert threshold is not None, "only random values and intersections have none"
        if self.rule.domain_ratios:
            return self._mean_threshold(threshold, count)
        return Threshold((threshold << HASH_BITS).where(count > 0, NO_THRESHOLD)[0])

    def _sort_key_at(self, values: Tensor, candidates: Candidates, count: Tensor) -> Tensor:
        """The sort key of the last of the `count` largest over all ranks."""
        sort_keys = sort_keys_of(values.view_as(candidates.eligible), candidates.targets.keys)
        threshold, _ = find_threshold(sort_keys, SORT_KEY_BITS, candidates.eligible, count[None], self.all_reduce_sum)
        return threshold[0].where(count > 0, NO_THRESHOLD)

    def _mean_threshold(self, threshold: Tensor, count: Tensor) -> Threshold:
        """The mean of the groups' thresholds, over groups that have one; (G,) int64 each."""
        was_cut = count > 0
        values = value_of_image(threshold).double().where(was_cut, 0.0)
        total, groups = self.all_reduce_sum(torch.stack([values.sum(), was_cut.sum().double()]))
        mean = ordered_image((total / groups.clamp(min=1)).float()) << HASH_BITS
        return Threshold(mean.where(groups > 0, NO_THRESHOLD))


class Objective(Protocol):
    """Decides which targets a step trains on."""

    def plan_step(
        self,
        targets: Targets,
        micro_steps: int,
        moment: Moment,
        measure_losses: MeasureLosses,
        all_reduce_sum: AllReduceSum,
    ) -> StepPlan:
        """Plans one step of `micro_steps` micro-batches, each of as many of the rows. Contains collectives.

        `targets`: of this rank's rows of the step, one micro-batch after the other.
        """
        ...

    def end_step(self, plan: StepPlan, output: HeadOutput) -> Tensor | None:
        """Records the head's output for the step. Returns the value from which targets were selected, a float32 scalar;
        NaN where there were none to select; None where values do not decide alone.

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
        targets: Targets,
        micro_steps: int,
        moment: Moment,
        measure_losses: MeasureLosses,
        all_reduce_sum: AllReduceSum,
    ) -> StepPlan:
        """Selects every valid target."""
        choices = tuple(map(Every, targets.valid.view(micro_steps, -1)))
        return StepPlan(choices, all_reduce_sum(targets.valid.sum()))

    def end_step(self, plan: StepPlan, output: HeadOutput) -> None:
        """Causal language modeling has no threshold."""
        return

    def state(self) -> SelectionState:
        """There is no state."""
        return AT_START


class SelectiveObjective:
    """Selective language modeling: targets are selected by a criterion, such as its top k (Rho-1, section 2.2)."""

    def __init__(self, rule: SelectionRule, state: SelectionState = AT_START) -> None:
        self._rule = rule
        self._recent = RecentThresholds(state)

    def plan_step(
        self,
        targets: Targets,
        micro_steps: int,
        moment: Moment,
        measure_losses: MeasureLosses,
        all_reduce_sum: AllReduceSum,
    ) -> StepPlan:
        """Selects by the rule.

        Raises:
            NonFiniteCriterion: a target cannot be sorted.
        """
        ratio = self._rule.ratio_at(moment.tokens)
        step = StepPlanner(self._rule, ratio, moment.step, targets, micro_steps, measure_losses, all_reduce_sum)
        if self._rule.criterion == "selected":
            return step.by_mask(targets.column("selected"))
        if selects_all(ratio) and self._rule.max_ref_loss is None and self._rule.policy.threshold is None:
            return CausalObjective().plan_step(targets, micro_steps, moment, measure_losses, all_reduce_sum)
        if self._rule.criterion in ("reference", "entropy", "reference_and_entropy"):
            mask = targets.columns.get("selected")
            return step.by_static_criterion() if mask is None else step.by_mask(mask)
        if self._rule.criterion == "random" or not formula_of(self._rule.criterion).needs_model:
            return step.by_static_criterion()
        if self._rule.scope != "batch":
            return step.within_micro_batches(self._recent)
        if self._rule.mode == "running" and len(self._recent) >= EXACT_STEPS:
            return step.above_threshold(self._recent)
        return step.over_all(self._recent)

    def end_step(self, plan: StepPlan, output: HeadOutput) -> Tensor | None:
        """Records the threshold."""
        if plan.threshold_of is None:
            return None
        threshold = plan.threshold_of(output)
        self._recent.add(threshold.sort_key, threshold.surplus)
        if self._rule.policy.temperature is not None:
            return None
        selected_from = threshold.sort_key if plan.known_threshold is None else plan.known_threshold
        return value_of_sort_key(selected_from).where(selected_from != NO_THRESHOLD, torch.nan)

    def state(self) -> SelectionState:
        """The recent thresholds."""
        return self._recent.state()
