"""What a run had spent after each of its steps: targets, selected targets, operations, seconds, GPU-hours."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from megaslm.dataset.cost_file import RunCost
from megaslm.model.forward_flops import FORWARD_AND_BACKWARD
from megaslm.report.metrics import Numbers, RunMetrics

AXES = ("tokens", "selected_tokens", "flops", "seconds", "gpu_hours")


@dataclass(frozen=True)
class Spent:
    """What was spent at n points of a run, of the run alone; (n,) each, rising. None where it is unknown."""

    tokens: Numbers
    """Targets read."""
    selected_tokens: Numbers
    flops: Numbers | None
    """Operations of matrix products; without recomputation."""
    seconds: Numbers | None
    gpu_hours: Numbers | None
    """None on CPUs."""

    def items(self) -> Iterator[tuple[str, Numbers | None]]:
        """The axes and their values."""
        for name in AXES:
            yield name, getattr(self, name)

    def at(self, tokens: Numbers) -> "Spent":
        """What was spent when so many targets were read; linear between the points, and from zero to the first."""
        known = np.concatenate([[0.0], self.tokens])

        def of(values: Numbers | None) -> Numbers | None:
            return None if values is None else np.interp(tokens, known, np.concatenate([[0.0], values]))

        selected = of(self.selected_tokens)
        assert selected is not None
        return Spent(tokens, selected, of(self.flops), of(self.seconds), of(self.gpu_hours))

    def of_points(self, points: slice | np.ndarray) -> "Spent":
        """Some of the points."""

        def of(values: Numbers | None) -> Numbers | None:
            return None if values is None else values[points]

        return Spent(
            self.tokens[points], self.selected_tokens[points], of(self.flops), of(self.seconds), of(self.gpu_hours)
        )


def spent(metrics: RunMetrics, cost: RunCost | None, forward_flops: float | None) -> Spent:
    """What was spent after each step of the metrics.

    A step's seconds are its targets by the targets per second of its report. Where cost.json has the true sums, of all
    attempts, seconds and selected targets are scaled to them. `forward_flops` are the operations of a forward pass per
    target. A second forward pass counts where the reports tell of it.
    """
    tokens = metrics.tokens
    read = np.diff(tokens, prepend=0.0)
    selected = np.cumsum(read * _filled(metrics.columns["selected_ratio"], 1.0))
    reported = metrics.columns["tokens_per_second"]
    pace = _filled(np.where(reported > 0, reported, np.nan), 0.0)
    seconds = np.cumsum(read / pace) if len(pace) and pace[0] > 0 else None
    gpu_hours = None
    if cost is not None:
        training = cost.training
        if seconds is None:
            # Without a measured pace, an even one.
            seconds = tokens.copy()
        seconds = _scaled(tokens, seconds, training.tokens_seen, training.seconds)
        selected = _scaled(tokens, selected, training.tokens_seen, training.tokens_selected)
        if training.gpu_hours and training.seconds > 0:
            gpu_hours = seconds * (training.gpu_hours / training.seconds)
    flops = None
    if forward_flops is not None:
        passes = FORWARD_AND_BACKWARD + np.nan_to_num(metrics.second_pass_ratio)
        flops = np.cumsum(read * passes) * forward_flops
    return Spent(tokens, selected, flops, seconds, gpu_hours)


def _filled(values: Numbers, otherwise: float) -> Numbers:
    """The values; their median in place of those that are NaN; `otherwise` where all are."""
    is_known = np.isfinite(values)
    return np.where(is_known, values, np.median(values[is_known]) if is_known.any() else otherwise)


def _scaled(tokens: Numbers, sums: Numbers, at_tokens: int | None, known: float | None) -> Numbers:
    """`sums` times what makes them `known` where `at_tokens` targets were read; at their end where that is None."""
    if known is None or len(sums) == 0:
        return sums
    there = sums[-1] if at_tokens is None else float(np.interp(at_tokens, [0.0, *tokens], [0.0, *sums]))
    return sums * (known / there) if there > 0 else sums
