"""The rule by which targets are selected, and what planning a step by it takes and gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, NamedTuple

from torch import Tensor

from megaslm.slm.choice import Choice, HeadOutput
from megaslm.slm.targets import Criterion

Scope = Literal["batch", "sequence", "microbatch"]
Mode = Literal["exact", "running"]
_RATIO_STEP = Decimal("0.000001")

MeasureLosses = Callable[[int], Tensor]
"""Runs the model over one micro-batch, named by its number, without gradients: (B, L) float32 losses."""


@dataclass(frozen=True)
class Moment:
    """When a step happens: its number, counted from 1, and the targets read before it."""

    step: int
    tokens: int


class Threshold(NamedTuple):
    """The threshold of a step.

    `sort_key`: int64 scalar, at which K targets of the step are selected, on average over the steps; `NO_THRESHOLD`
    where there is none. `surplus`: float64 scalar, what steps under a known threshold have selected beyond K, this one
    counted in; None in other modes.
    """

    sort_key: Tensor
    surplus: Tensor | None = None


@dataclass(frozen=True)
class StepPlan:
    """How to choose in each micro-batch, and by what to divide.

    `choices`: one a micro-batch. `denominator`: scalar, |S| over all ranks and micro-steps, or what stands for it.
    `losses`: (B, L) float32 of each micro-batch, where they were measured beforehand.
    `known_threshold`: int64 scalar, the sort key from which targets are selected, where that is known beforehand.
    `threshold_of`: the threshold of what the head has given for each micro-batch; contains collectives. None where the
    step has none.
    """

    choices: tuple[Choice, ...]
    denominator: Tensor
    losses: tuple[Tensor, ...] | None = None
    known_threshold: Tensor | None = None
    threshold_of: Callable[[Sequence[HeadOutput]], Threshold] | None = None


@dataclass(frozen=True)
class KeepRatio:
    """k in (0, 1]; on the way to it, falling in a straight line from 1 over `warmup_tokens` targets."""

    target: Decimal
    warmup_tokens: int = 0

    def at(self, tokens: int) -> Decimal:
        """The ratio of the step that begins when `tokens` targets have been read; a decimal of six places."""
        if tokens >= self.warmup_tokens:
            return self.target
        return (1 - (1 - self.target) * tokens / self.warmup_tokens).quantize(_RATIO_STEP)


@dataclass(frozen=True)
class SelectionRule:
    """What is ranked, among what, and how much of it is kept."""

    keep_ratio: KeepRatio
    """k, over the tokens read."""
    criterion: Criterion = "excess"
    """What is ranked, largest first."""
    scope: Scope = "batch"
    """Among which targets the largest are kept."""
    mode: Mode = "exact"
    """Under scope batch: K of each step, or what lies above a threshold that follows the steps before."""
    max_ref_loss: float | None = None
    """Targets of a larger reference loss are never selected, in nats."""
    measure_rest: bool = True
    """Whether losses of unselected targets are computed where the choice does not need them."""
    seed: int = 0
    """Of the criterion `random`."""
