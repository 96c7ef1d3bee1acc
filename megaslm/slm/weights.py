"""Weights of targets (`slm.weight`): what multiplies their losses in the sum that a step trains on.

A weight is a number without a gradient. It follows from what the head knows of a row while it has the row's logits, so
none needs the T×V logits or a read by the host. The denominator stays the number of selected targets: it is known
before the first backward pass, whereas the sum of the weights is not. DFT and EAFT divide by the number, too.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log
from typing import Any, cast

import torch
from torch import Tensor

from megaslm.slm.choice import Choice, HeadOutput, Weights
from megaslm.slm.criterion import Formula
from megaslm.slm.head_pass import Softmax
from megaslm.slm.objective import Objective
from megaslm.slm.rule import MeasureLosses, Moment, StepPlan
from megaslm.slm.targets import Targets
from megaslm.slm.threshold import SelectionState
from megaslm.slm.topk import AllReduceSum

WeightRule = Callable[[Targets], Weights]
"""Makes the weights of a micro-batch from its targets."""
_FOLDS = 16


class _OfSelectedAlone:
    """Weights that leave out what is not selected."""

    trains_others = False
    teacher = None

    def of_others(self, rows: Tensor, softmax: Softmax) -> Tensor:
        """See `Weights`."""
        return torch.zeros_like(softmax.losses)


@dataclass(frozen=True, eq=False)
class ProbabilityWeights(_OfSelectedAlone):
    """p^power, with p the model's probability of the target. With power 1 it is DFT (arXiv 2508.05629)."""

    power: float

    def of_selected(self, rows: Tensor, softmax: Softmax) -> Tensor:
        """See `Weights`."""
        return torch.exp(-self.power * softmax.losses)


@dataclass(frozen=True, eq=False)
class EntropyWeights(_OfSelectedAlone):
    """(H / ln K)^power, with H the entropy of the K most likely tokens, whose probabilities are scaled to a sum of 1.

    With power 1 and K = 20 it is EAFT (arXiv 2601.02151). Its code in LLaMA-Factory divides by 3.0 in place of
    ln 20 = 2.996.
    """

    power: float
    top_tokens: int

    def of_selected(self, rows: Tensor, softmax: Softmax) -> Tensor:
        """See `Weights`."""
        count = min(self.top_tokens, softmax.exponentials.shape[1])
        top = _largest(softmax.exponentials, count).to(softmax.losses.dtype)
        entropy = torch.special.entr(top / top.sum(1, keepdim=True)).sum(1)
        return (entropy / log(count)).pow(self.power)


@dataclass(frozen=True, eq=False)
class SigmoidWeights(_OfSelectedAlone):
    """1 / (1 + exp(−(value − center) / temperature)), with the target's own value of a criterion, all in nats.

    `formula`: without `entropy`.
    """

    formula: Formula
    temperature: float
    center_nats: float
    targets: Targets

    def of_selected(self, rows: Tensor, softmax: Softmax) -> Tensor:
        """See `Weights`."""
        values = self.formula.at(rows, self.targets, softmax.losses)
        return torch.sigmoid((values - self.center_nats) / self.temperature)


@dataclass(frozen=True, eq=False)
class SignedWeights:
    """1 where a target is selected, −negative where a valid one is not: its loss is raised, up to a bound.

    A target of negative weight whose loss has reached `bound_nats` has weight 0. So the objective has a lower bound,
    which −λ times a loss has not. "Forgetting" (arXiv 2508.04329) subtracts the losses of negative tokens likewise.
    """

    negative: float
    bound_nats: float
    targets: Targets
    trains_others = True
    teacher = None

    def of_selected(self, rows: Tensor, softmax: Softmax) -> Tensor:
        """See `Weights`."""
        return torch.ones_like(softmax.losses)

    def of_others(self, rows: Tensor, softmax: Softmax) -> Tensor:
        """See `Weights`."""
        unlearned = self.targets.valid.flatten()[rows] & (softmax.losses < self.bound_nats)
        return -self.negative * unlearned.to(softmax.losses.dtype)


@dataclass(frozen=True, eq=False)
class ColumnWeights(_OfSelectedAlone):
    """The numbers that the dataset stores. A negative one counts as 0 once the loss has reached `bound_nats`.

    `bound_nats`: None where the column has no negative number.
    """

    bound_nats: float | None
    targets: Targets

    def of_selected(self, rows: Tensor, softmax: Softmax) -> Tensor:
        """See `Weights`."""
        stored = self.targets.column("weight").flatten()[rows].to(softmax.losses.dtype)
        if self.bound_nats is None:
            return stored
        return stored.where((stored >= 0) | (softmax.losses < self.bound_nats), 0.0)


@dataclass(frozen=True)
class WeightedObjective:
    """Another objective's selection and denominator, with weights."""

    objective: Objective
    rule: WeightRule

    def plan_step(
        self,
        targets: Targets,
        micro_steps: int,
        moment: Moment,
        measure_losses: MeasureLosses,
        all_reduce_sum: AllReduceSum,
    ) -> StepPlan:
        """See `Objective`."""
        plan = self.objective.plan_step(targets, micro_steps, moment, measure_losses, all_reduce_sum)
        of_micro_batches = zip(plan.choices, targets.micro_batches(micro_steps), strict=True)
        return replace(plan, choices=tuple(_weighted(choice, self.rule(part)) for choice, part in of_micro_batches))

    def end_step(self, plan: StepPlan, output: HeadOutput) -> Tensor | None:
        """See `Objective`."""
        return self.objective.end_step(plan, output)

    def state(self) -> SelectionState:
        """See `Objective`. Weights have no state."""
        return self.objective.state()


def _largest(values: Tensor, count: int) -> Tensor:
    """The `count` largest values of each row of (n, V), in any order: (n, count).

    The row is folded into columns of 16. A column that holds one of the largest is among the `count` columns with the
    largest maxima. Both sets are small, and `topk` takes time in proportion to what it looks at.
    """
    width = values.shape[1] // _FOLDS
    if width < 2 * count:
        return values.topk(count, sorted=False).values
    folded = values[:, : _FOLDS * width].unflatten(1, (_FOLDS, width))
    best = folded.amax(1).topk(count, sorted=False).indices
    candidates = folded.gather(2, best[:, None].expand(-1, _FOLDS, -1)).flatten(1)
    return torch.cat([candidates, values[:, _FOLDS * width :]], 1).topk(count, sorted=False).values


def _weighted(choice: Choice, weights: Weights) -> Choice:
    # Every choice is a dataclass; a protocol cannot say so.
    return cast(Choice, replace(cast(Any, choice), weights=weights))
