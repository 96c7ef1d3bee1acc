"""One run in the document: facts, curves, validations, tasks and domains."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from megaslm.observe.display import counted, duration, rounded
from megaslm.observe.run_description import datasets_in_words, model_in_words, objective_in_words
from megaslm.report.metrics import MEASURED, Measured, Numbers
from megaslm.report.packed import known, packed, spread
from megaslm.report.runs import ReportedRun
from megaslm.report.spent import Spent

MOST_POINTS, ALL_POINTS = 600, 9000
"""Points of the steps of a run, and of all runs together. Neighbouring steps share a point where there are more."""
MOST_MEASURED, ALL_MEASURED = 200, 8000
"""Points of a validation or a task of a run, and of all of them together. Some are left out where there are more."""
_LEAST_POINTS = 20
BEFORE = ("flops", "seconds", "gpu_hours")

Entry = dict[str, Any]


def run_entries(runs: Sequence[ReportedRun]) -> list[Entry]:
    """All that the document says of each run alone."""
    steps = _points_each(len(runs), MOST_POINTS, ALL_POINTS)
    curves = sum(len(run.metrics.validations) + len(run.metrics.tasks) for run in runs)
    measured = _points_each(curves, MOST_MEASURED, ALL_MEASURED)
    return [_entry(run, steps, measured) for run in runs]


def _points_each(curves: int, most: int, together: int) -> int:
    return max(_LEAST_POINTS, min(most, together // max(1, curves)))


def _entry(run: ReportedRun, most_steps: int, most_measured: int) -> Entry:
    return {
        "name": run.name,
        "path": str(run.path),
        "objective": run.config.train.objective,
        "about": " · ".join(
            [objective_in_words(run.config), model_in_words(run.config), ", ".join(datasets_in_words(run.config))]
        ),
        "state": "complete" if run.is_complete else "unfinished",
        "notes": list(run.notes),
        "facts": [list(fact) for fact in _facts(run)],
        "series": _series(run, most_steps),
        "before": {axis: run.before.total(axis) for axis in BEFORE},
        "validations": [
            {"place": place, **_curve(run, found, "loss", most_measured)}
            for place, found in run.metrics.validations.items()
        ],
        "tasks": [
            {"name": name, "measure": measure, **_curve(run, found, "value", most_measured)}
            for (name, measure), found in run.metrics.tasks.items()
        ],
        "domains": list(_domains(run)),
    }


def axes(spent: Spent) -> Entry:
    """The axes of curves."""
    return {name: None if values is None else packed(values, "f8") for name, values in spent.items()}


def _curve(run: ReportedRun, found: Measured, name: str, most: int) -> Entry:
    shown = spread(len(found.step), most)
    spent = run.spent.at(found.tokens[shown])
    return {"step": packed(found.step[shown], "f8"), **axes(spent), name: packed(found.values[shown])}


def _series(run: ReportedRun, most: int) -> Entry:
    metrics = run.metrics
    starts = _starts(len(metrics.step), most)
    ends = np.append(starts[1:], len(metrics.step)) - 1 if len(starts) else starts
    return {
        "points": len(starts),
        "steps_per_point": len(metrics.step) / max(1, len(starts)),
        "step": packed(metrics.step[ends], "f8"),
        **axes(run.spent.of_points(ends)),
        **{name: packed(_means(metrics.columns[name], starts)) for name in MEASURED},
    }


def _starts(steps: int, most: int) -> np.ndarray:
    """The first step of each point, (points,)."""
    points = min(steps, most)
    return (np.arange(points) * steps) // max(1, points)


def _means(values: Numbers, starts: np.ndarray) -> Numbers:
    """The mean of the finite values of each group of steps; NaN where there is none."""
    if len(starts) == 0:
        return values
    is_known = np.isfinite(values)
    sums = np.add.reduceat(np.where(is_known, values, 0.0), starts)
    counts = np.add.reduceat(is_known.astype(np.float64), starts)
    return np.divide(sums, counts, out=np.full(len(starts), np.nan), where=counts > 0)


def _facts(run: ReportedRun) -> Iterator[tuple[str, str]]:
    train = run.config.train
    yield "objective", objective_in_words(run.config)
    yield "model", model_in_words(run.config)
    yield "data", "; ".join(datasets_in_words(run.config))
    yield "steps", f"{run.last_step:,} of {run.total_steps:,}"
    if run.last_step:
        total = "" if train.total_tokens is None else f" of {train.total_tokens:,}"
        yield "tokens seen", f"{run.metrics.tokens[-1]:,.0f}{total}"
        yield "tokens selected", f"{run.spent.selected_tokens[-1]:,.0f}"
        passes = run.metrics.second_pass_ratio
        told = passes[np.isfinite(passes)]
        if told.any():
            yield "second forward pass", f"over {told.mean():.0%} of the tokens; it is in the FLOPs"
    yield "batch", f"{train.global_batch_tokens:,} tokens of rows of {run.config.data.seq_len:,}"
    yield "learning rate", f"{train.lr:g}, {train.schedule}"
    if run.cost is not None:
        cost = run.cost.training
        ranks = "" if cost.ranks is None else f" on {counted(cost.ranks, 'rank')}"
        gpu_hours = f" · {rounded(cost.gpu_hours, 2)} GPU-hours" if cost.gpu_hours else ""
        yield "trained for", f"{duration(cost.seconds)}{ranks}{gpu_hours}"
    for place, found in run.metrics.validations.items():
        yield f"held out {place}", f"{found.values[0]:.4f} → {found.values[-1]:.4f} nats"


def _domains(run: ReportedRun) -> Iterator[Entry]:
    metrics = run.metrics
    validated: dict[str, Measured] = {}
    for place, found in metrics.validations.items():
        validated.setdefault(metrics.validated_domain[place], found)
    for name in dict.fromkeys([*metrics.domains, *(name for name in validated if name != "all")]):
        read, losses = metrics.domains.get(name), validated.get(name)
        yield {
            "name": name,
            "tokens": None if read is None else read.tokens,
            "passes": None if read is None else known(read.passes),
            "selected_ratio": None if read is None else known(read.selected_ratio),
            "validation_loss_first": None if losses is None else known(float(losses.values[0])),
            "validation_loss_last": None if losses is None else known(float(losses.values[-1])),
        }
