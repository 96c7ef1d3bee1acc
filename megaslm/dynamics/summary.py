"""The token dynamics of a run in numbers, as dynamics.json holds them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megaslm.dynamics.examples import Example
from megaslm.dynamics.lines import CLASSES, Lines, classify, fit_lines, shares, shares_over_time
from megaslm.dynamics.sigmoids import LEAST_MEASUREMENTS as LEAST_FOR_SIGMOIDS
from megaslm.dynamics.sigmoids import Sigmoids, fit_sigmoids
from megaslm.dynamics.trajectories import LEAST_MEASUREMENTS, Trajectories


@dataclass(frozen=True)
class Dynamics:
    """What was fitted to the trajectories of T tokens."""

    lines: Lines
    classes: NDArray[np.int8]
    """(T,) indices into `CLASSES`."""
    sigmoids: Sigmoids | None
    """None with fewer than six measurements."""


def analyse(found: Trajectories) -> Dynamics:
    """Fits lines and sigmoids to all tokens, over the targets read."""
    x = found.tokens_seen.astype(np.float64)
    lines = fit_lines(x, found.losses)
    sigmoids = fit_sigmoids(x, found.losses) if len(x) >= LEAST_FOR_SIGMOIDS else None
    return Dynamics(lines, classify(lines.change, found.losses[:, -1]), sigmoids)


@dataclass(frozen=True)
class ClassSummary:
    """The tokens of one class. Means are over tokens, losses in nats; None where the class is empty."""

    name: str
    tokens: int
    share: float
    first_loss: float | None
    last_loss: float | None
    change: float | None
    """Mean ΔL of the lines."""
    fluctuation: float | None
    """Mean standard deviation around the line."""
    last_excess: float | None
    """Mean of the last loss minus the reference's; None without a reference."""
    kept_share: float | None
    """Share that the run's selection keeps at the last measurement; None where that is unknown."""


@dataclass(frozen=True)
class SharesAt:
    """The shares of the classes at a measurement, from the measurements up to it."""

    step: int
    tokens_seen: int
    mean_loss: float
    shares: dict[str, float]


@dataclass(frozen=True)
class StepwiseSummary:
    """Tokens that are learned in a step, by their sigmoids. The midpoints' quantiles are in targets read."""

    tokens: int
    share: float
    median_r2: float
    """Of all tokens."""
    midpoint_quartiles: tuple[float, float, float] | None
    """None if no token is learned in a step."""
    median_width: float | None


@dataclass(frozen=True)
class DynamicsSummary:
    """The token dynamics of a run."""

    run: str
    rows_sha256: str
    """The same for runs whose probe rows are the same."""
    tokens: int
    """Probe tokens in the shares."""
    non_finite_tokens: int
    non_finite_steps: tuple[int, ...]
    steps: tuple[int, ...]
    tokens_seen: tuple[int, ...]
    mean_losses: tuple[float, ...]
    classes: tuple[ClassSummary, ...]
    domains: dict[str, dict[str, float]]
    """The shares of the classes in each domain."""
    over_time: tuple[SharesAt, ...]
    """From the third measurement on."""
    stepwise: StepwiseSummary | None
    """None with fewer than six measurements."""
    examples: tuple[Example, ...]


def summarise(run: str, found: Trajectories, dynamics: Dynamics, examples: tuple[Example, ...]) -> DynamicsSummary:
    """All numbers of a run's token dynamics."""
    means = found.losses.mean(axis=0, dtype=np.float64)
    over_time = shares_over_time(found.tokens_seen.astype(np.float64), found.losses, LEAST_MEASUREMENTS)
    start = LEAST_MEASUREMENTS - 1
    return DynamicsSummary(
        run=run,
        rows_sha256=found.rows.sha256,
        tokens=len(found.losses),
        non_finite_tokens=found.non_finite_tokens,
        non_finite_steps=found.non_finite_steps,
        steps=tuple(found.steps.tolist()),
        tokens_seen=tuple(found.tokens_seen.tolist()),
        mean_losses=tuple(means.tolist()),
        classes=tuple(_class_summary(number, found, dynamics) for number in range(len(CLASSES))),
        domains={
            name: _named(shares(dynamics.classes[found.domain == number]))
            for number, name in enumerate(found.rows.domains)
            if (found.domain == number).any()
        },
        over_time=tuple(
            SharesAt(int(step), int(tokens), float(mean), _named(at))
            for step, tokens, mean, at in zip(
                found.steps[start:], found.tokens_seen[start:], means[start:], over_time, strict=True
            )
        ),
        stepwise=None if dynamics.sigmoids is None else _stepwise(dynamics.sigmoids),
        examples=examples,
    )


def _class_summary(number: int, found: Trajectories, dynamics: Dynamics) -> ClassSummary:
    here = dynamics.classes == number

    def mean(values: NDArray[np.generic] | None) -> float | None:
        return None if values is None or not here.any() else float(np.mean(values[here], dtype=np.float64))

    excess = None if found.ref_loss is None else found.losses[:, -1] - found.ref_loss
    return ClassSummary(
        name=CLASSES[number],
        tokens=int(here.sum()),
        share=float(here.mean()),
        first_loss=mean(found.losses[:, 0]),
        last_loss=mean(found.losses[:, -1]),
        change=mean(dynamics.lines.change),
        fluctuation=mean(dynamics.lines.fluctuation),
        last_excess=mean(excess),
        kept_share=mean(None if found.kept is None else found.kept[:, -1]),
    )


def _stepwise(sigmoids: Sigmoids) -> StepwiseSummary:
    is_step = sigmoids.is_step
    quartiles = np.quantile(sigmoids.midpoint[is_step], (0.25, 0.5, 0.75)).tolist() if is_step.any() else None
    return StepwiseSummary(
        tokens=int(is_step.sum()),
        share=float(is_step.mean()),
        median_r2=float(np.median(sigmoids.r2)),
        midpoint_quartiles=None if quartiles is None else (quartiles[0], quartiles[1], quartiles[2]),
        median_width=float(np.median(sigmoids.width[is_step])) if is_step.any() else None,
    )


def _named(values: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(CLASSES, values.tolist(), strict=True))
