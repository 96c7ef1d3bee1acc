"""The rule by which targets are selected, and what planning a step by it takes and gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, NamedTuple

from torch import Tensor

from megaslm.slm.choice import Choice, HeadOutput
from megaslm.slm.targets import Score

Scope = Literal["batch", "sequence", "microbatch"]
Mode = Literal["exact", "running"]
_STEP = Decimal("0.000001")

MeasureLosses = Callable[[int], Tensor]
"""Runs the model over one micro-batch, named by its number, without gradients: (B, L) float32 losses."""


@dataclass(frozen=True)
class Moment:
    """When a step happens: its number, counted from 1, and the targets read before it."""

    step: int
    tokens: int


class Cut(NamedTuple):
    """Where a step was cut.

    `rank`: int64 scalar, the rank at which the next steps are to be cut, `NOTHING_CUT` where there is none; without a
    threshold also that of this step. `surplus`: float64 scalar, what steps under a threshold have selected beyond K,
    this one counted in; None without a threshold.
    """

    rank: Tensor
    surplus: Tensor | None = None


@dataclass(frozen=True)
class StepPlan:
    """How to choose in each micro-batch, and by what to divide.

    `choices`: one a micro-batch. `denominator`: scalar, |S| over all ranks and micro-steps, or what stands for it.
    `losses`: (B, L) float32 of each micro-batch, where they were measured beforehand.
    `threshold`: int64 scalar, the rank from which targets are selected, where that is known beforehand. `cut`: of what
    the head has given for each micro-batch, where the step was cut; contains collectives. None where nothing is cut.
    """

    choices: tuple[Choice, ...]
    denominator: Tensor
    losses: tuple[Tensor, ...] | None = None
    threshold: Tensor | None = None
    cut: Callable[[Sequence[HeadOutput]], Cut] | None = None


@dataclass(frozen=True)
class KeepRatio:
    """k in (0, 1]; on the way to it, falling in a straight line from 1 over `warmup_tokens` targets."""

    target: Decimal
    warmup_tokens: int = 0

    def at(self, tokens: int) -> Decimal:
        """The ratio of the step that begins when `tokens` targets have been read; a decimal of six places."""
        if tokens >= self.warmup_tokens:
            return self.target
        return (1 - (1 - self.target) * tokens / self.warmup_tokens).quantize(_STEP)


@dataclass(frozen=True)
class SelectionRule:
    """What is ranked, among what, and how much of it is kept."""

    keep_ratio: KeepRatio
    """k, over the tokens read."""
    score: Score = "excess"
    """What is ranked, largest first."""
    scope: Scope = "batch"
    """Among which targets a target has to rank."""
    mode: Mode = "exact"
    """Under scope batch: K of each step, or what lies above a threshold that follows the steps before."""
    max_ref_loss: float | None = None
    """Targets of a larger reference loss are never selected, in nats."""
    measure_rest: bool = True
    """Whether losses of unselected targets are computed where the choice does not need them."""
    seed: int = 0
    """Of the score `random`."""
