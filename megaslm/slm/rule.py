"""The rule that selects targets, and the inputs and results of planning a step by it."""

from collections.abc import Callable
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
"""Runs the model over the micro-batch with this number: (B, L) float32 losses, detached. Called once for each."""


@dataclass(frozen=True)
class Moment:
    """When a step happens: its number, counted from 1, and the number of targets read before it."""

    step: int
    tokens: int


class Threshold(NamedTuple):
    """The threshold of a step.

    `sort_key`: int64 scalar, from which K targets of the step are selected, on average over the steps; `NO_THRESHOLD`
    where there is none. `surplus`: float64 scalar, targets beyond K that steps under a known threshold have selected up
    to this one, as a fraction of K; None in other modes.
    """

    sort_key: Tensor
    surplus: Tensor | None = None


@dataclass(frozen=True)
class StepPlan:
    """The choice for each micro-batch, and the denominator of the loss.

    `choices`: one per micro-batch. `denominator`: scalar, |S| over all ranks and micro-steps, or its stand-in.
    `losses`: (R, L) float32, where they were measured beforehand. `measures_rest`: whether the losses of all valid
    targets are computed, not only those of the selected ones. `known_threshold`: int64 scalar, the sort key from which
    targets are selected, where it is known beforehand. `threshold_of`: computes the step's threshold from the step's
    `HeadOutput`; contains collectives. None where the step has no threshold.
    """

    choices: tuple[Choice, ...]
    denominator: Tensor
    losses: Tensor | None = None
    measures_rest: bool = True
    known_threshold: Tensor | None = None
    threshold_of: Callable[[HeadOutput], Threshold] | None = None


@dataclass(frozen=True)
class KeepRatio:
    """k in (0, 1], after a linear decrease from 1 over `warmup_tokens` targets."""

    target: Decimal
    warmup_tokens: int = 0

    def at(self, tokens: int) -> Decimal:
        """The ratio of the step before which `tokens` targets have been read; a decimal of six places."""
        if tokens >= self.warmup_tokens:
            return self.target
        return (1 - (1 - self.target) * tokens / self.warmup_tokens).quantize(_RATIO_STEP)


@dataclass(frozen=True)
class SelectionRule:
    """What targets are sorted by, in which scope, and how much of it is kept."""

    keep_ratio: KeepRatio
    """k, by the number of tokens read."""
    criterion: Criterion = "excess"
    """What targets are sorted by, largest first."""
    scope: Scope = "batch"
    """The targets among which the largest are kept."""
    mode: Mode = "exact"
    """Under scope batch: the top K of each step, or all above a threshold that follows from the steps before."""
    max_ref_loss: float | None = None
    """Targets with a larger reference loss, in nats, are never selected."""
    measure_rest: bool = True
    """Whether losses of unselected targets are computed where the choice does not need them."""
    seed: int = 0
    """Seed of the criterion `random`."""
