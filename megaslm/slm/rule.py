"""The rule that selects targets, and the inputs and results of planning a step by it."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import Literal, NamedTuple

from torch import Tensor

from megaslm.slm.choice import Choice, HeadOutput
from megaslm.slm.criterion import Criterion, Formula
from megaslm.slm.measure import Measured
from megaslm.slm.selection import TOP, Policy
from megaslm.slm.targets import Targets
from megaslm.slm.topk import Ratio

Scope = Literal["batch", "sequence", "microbatch"]
Mode = Literal["exact", "running"]
_RATIO_STEP = Decimal("0.000001")


MeasureLosses = Callable[[int], Measured]
"""Runs the model over the micro-batch with this number. Called once for each."""


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

    `choices`: one per micro-batch. `denominator`: scalar, |S| over all ranks and micro-steps, or its stand-in; None
    where the single choice of the step decides how many targets are selected.
    `losses`: (R, L) float32, where they were measured beforehand. `measures_rest`: whether the losses of all valid
    targets are computed, not only those of the selected ones. `known_threshold`: int64 scalar, the sort key from which
    targets are selected, where it is known beforehand. `threshold_of`: computes the step's threshold from the step's
    `HeadOutput`; contains collectives. None where the step has no threshold.
    """

    choices: tuple[Choice, ...]
    denominator: Tensor | None
    losses: Tensor | None = None
    measures_rest: bool = True
    known_threshold: Tensor | None = None
    threshold_of: Callable[[HeadOutput], Threshold] | None = None


@dataclass(frozen=True)
class KeepRatio:
    """k in (0, 1], by the number of targets read.

    `target`: k at the end. `warmup_tokens`: targets over which k falls linearly from 1 to it. `points`: in place of
    that, pairs of targets and k. The targets rise, and the last k is `target`. Between two points k is linear, before
    the first and after the last it is constant. Two points at equal targets make a jump.
    """

    target: Decimal
    warmup_tokens: int = 0
    points: tuple[tuple[int, Decimal], ...] = ()

    def at(self, tokens: int) -> Decimal:
        """The ratio of the step before which `tokens` targets have been read; between two points of six places."""
        points = self._points
        for (start, before), (end, after) in pairwise(points):
            if start <= tokens < end:
                return (before + (after - before) * (tokens - start) / (end - start)).quantize(_RATIO_STEP)
        return points[0][1] if tokens < points[0][0] else points[-1][1]

    @property
    def extremes(self) -> tuple[int, int]:
        """Numbers of targets read at which k is smallest, and largest."""
        # A jump leaves the value that k had before.
        places = [place for tokens, _ in self._points for place in (max(0, tokens - 1), tokens)]
        return min(places, key=self.at), max(places, key=self.at)

    @property
    def _points(self) -> tuple[tuple[int, Decimal], ...]:
        return self.points or ((0, Decimal(1)), (self.warmup_tokens, self.target))


def selects_all(ratio: Ratio) -> bool:
    """Whether k is 1 everywhere."""
    return set(ratio if isinstance(ratio, tuple) else (ratio,)) == {1}


@dataclass(frozen=True)
class SelectionRule:
    """What targets are sorted by, in which scope, and how much of it is selected in which way."""

    keep_ratio: KeepRatio
    """k, by the number of tokens read."""
    criterion: Criterion | Formula = "excess"
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
    """Seed of the criterion `random`, and of draws."""
    domain_ratios: tuple[Decimal | None, ...] = ()
    """Under scope batch: k of each domain, by its number, where each domain is sorted on its own. None stands for
    `keep_ratio`. Empty where all domains are sorted together."""
    policy: Policy = TOP
    """How targets are selected by the criterion."""

    def ratio_at(self, tokens: int) -> Ratio:
        """k of the step before which `tokens` targets have been read: of the whole step, or of each domain."""
        ratio = self.keep_ratio.at(tokens)
        return tuple(ratio if own is None else own for own in self.domain_ratios) or ratio

    def whole_step(self, targets: Targets) -> Targets:
        """The targets in the groups of scope batch: all in one, or one for each domain."""
        return targets.in_domains(len(self.domain_ratios)) if self.domain_ratios else targets.in_groups(1)
