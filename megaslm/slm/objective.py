"""What one optimiser step trains on: the selected targets of all its micro-batches and the count they are divided by.

The step's loss is the sum of the selected losses over all ranks and micro-steps, divided by their number: a sum over a
global count, never a mean of means (Rho-1, equation 4). The count follows from the tokens and the reference alone, so
it is known before the first backward pass.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from megaslm.slm.choice import HeadOutput
from megaslm.slm.planning import StepPlanner, plan_for_all
from megaslm.slm.rule import MeasureLosses, Moment, SelectionRule, StepPlan
from megaslm.slm.targets import Targets
from megaslm.slm.threshold import AT_START, NO_THRESHOLD, RecentThresholds, SelectionState, score_of_sort_key
from megaslm.slm.topk import AllReduceSum


class Objective(Protocol):
    """Decides what a step trains on."""

    def plan_step(
        self,
        micro_batches: Sequence[Targets],
        moment: Moment,
        measure_losses: MeasureLosses,
        all_reduce_sum: AllReduceSum,
    ) -> StepPlan:
        """Plans one step. Called on every rank with equally many micro-batches; contains collectives."""
        ...

    def end_step(self, plan: StepPlan, outputs: Sequence[HeadOutput]) -> Tensor | None:
        """Takes note of what the head gave for each micro-batch. Gives the score from which targets were selected, a
        float32 scalar, NaN where there were none to select.

        Called on every rank; contains collectives.
        """
        ...

    def state(self) -> SelectionState:
        """What a resumed run needs to go on alike; waits for the device."""
        ...


class CausalObjective:
    """Causal language modeling: every valid target."""

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
        """There is no threshold."""
        return

    def state(self) -> SelectionState:
        """Nothing is remembered."""
        return AT_START


class SelectiveObjective:
    """Selective language modeling: the top k of the targets by score (Rho-1, section 2.2)."""

    def __init__(self, rule: SelectionRule, state: SelectionState = AT_START) -> None:
        """Goes on from what `state` gave."""
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
            NonFiniteScore: a target cannot be ranked.
        """
        if self._rule.keep_ratio.at(moment.tokens) == 1 and self._rule.max_ref_loss is None:
            return plan_for_all(micro_batches, all_reduce_sum)
        step = StepPlanner(self._rule, list(micro_batches), moment, measure_losses, all_reduce_sum)
        if self._rule.score in ("reference", "entropy", "reference_and_entropy"):
            masks = [targets.selected for targets in micro_batches if targets.selected is not None]
            return step.by_mask(masks) if masks else step.by_static_score()
        if self._rule.score == "random":
            return step.by_static_score()
        if self._rule.scope != "batch":
            return step.within_micro_batches(self._recent)
        if self._rule.mode == "running" and self._recent:
            return step.above_threshold(self._recent)
        return step.over_all(self._recent)

    def end_step(self, plan: StepPlan, outputs: Sequence[HeadOutput]) -> Tensor | None:
        """Remembers the threshold."""
        if plan.threshold_of is None:
            return None
        threshold = plan.threshold_of(outputs)
        self._recent.add(threshold.sort_key, threshold.surplus)
        selected_from = threshold.sort_key if plan.known_threshold is None else plan.known_threshold
        return score_of_sort_key(selected_from).where(selected_from != NO_THRESHOLD, torch.nan)

    def state(self) -> SelectionState:
        """The recent thresholds."""
        return self._recent.state()
