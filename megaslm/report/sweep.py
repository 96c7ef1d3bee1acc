"""Runs that differ in one setting only, as a curve over it (as in figure 9 of Rho-1)."""

import math
from collections.abc import Iterator, Sequence
from decimal import Decimal

from megaslm.report.metrics import Measured
from megaslm.report.packed import known
from megaslm.report.runs import ReportedRun
from megaslm.report.settings import difference, settings
from megaslm.report.targets import baseline_of, final_loss

KEEP_RATIO = "slm.keep_ratio"
_MISSING = "not set"
Point = tuple[ReportedRun, object]
"""A run and the value of its setting."""


def sweep_of(runs: Sequence[ReportedRun]) -> dict[str, object] | None:
    """The largest group of runs that differ in one setting only; None where no two do.

    A run that trained the reference of another one is no point of it.
    """
    found = _largest([run for run in runs if not any(run.is_reference_of(other) for other in runs)])
    if found is None:
        return None
    key, group = found
    points = [(run, _plain(settings(run.config).get(key, _MISSING))) for run in group]
    baseline = baseline_of(runs)
    if key == KEEP_RATIO and baseline is not None and not difference(baseline.config, group[0].config):
        points.append((baseline, 1.0))
    complete = sorted((point for point in points if point[0].is_complete), key=lambda point: _order(point[1]))
    return {
        "key": key,
        "best": _best(key, complete),
        "left_out": [
            f"{run.name} is left out: it has made {run.last_step:,} of {run.total_steps:,} steps"
            for run, _ in points
            if not run.is_complete
        ],
        "metrics": [*_losses(complete), *_tasks(complete)],
    }


def _largest(runs: Sequence[ReportedRun]) -> tuple[str, list[ReportedRun]] | None:
    all_settings = [settings(run.config) for run in runs]
    keys = dict.fromkeys(key for one in all_settings for key in one)
    # A CLM run and an SLM run are a comparison, not a sweep.
    swept = [key for key in keys if key != "train.objective"]
    differing = [key for key in swept if len({repr(one.get(key)) for one in all_settings}) > 1]
    best: tuple[str, list[ReportedRun]] | None = None
    for key in differing:
        groups: dict[str, dict[str, ReportedRun]] = {}
        for run, one in zip(runs, all_settings, strict=True):
            rest = repr(sorted((other, repr(value)) for other, value in one.items() if other != key))
            # Of runs with equal settings the last one counts.
            groups.setdefault(rest, {})[repr(one.get(key))] = run
        for group in groups.values():
            if len(group) > max(1, 0 if best is None else len(best[1])):
                best = key, list(group.values())
    return best


def _best(key: str, points: Sequence[Point]) -> dict[str, object] | None:
    """The value whose run ended with the lowest loss at the place that is measured first; None of fewer than two."""
    place = next((place for run, _ in points for place in run.metrics.validations), "")
    ends = [(final_loss(run, place), run.name, value) for run, value in points]
    finite = [end for end in ends if math.isfinite(end[0])]
    if len(finite) < 2:
        return None
    loss, name, value = min(finite, key=lambda end: end[0])
    return {
        "loss": loss,
        "sentence": f"{key} = {value} ({name}) ended with the lowest loss on {place}, {loss:.4f} nats, of "
        f"{len(finite)} values.",
    }


def _losses(points: Sequence[Point]) -> Iterator[dict[str, object]]:
    for place in dict.fromkeys(place for run, _ in points for place in run.metrics.validations):
        yield _metric(place, "loss in nats", [(point, point[0].metrics.validations.get(place)) for point in points])


def _tasks(points: Sequence[Point]) -> Iterator[dict[str, object]]:
    for task in dict.fromkeys(task for run, _ in points for task in run.metrics.tasks):
        yield _metric(*task, [(point, point[0].metrics.tasks.get(task)) for point in points])


def _metric(place: str, measure: str, found: Sequence[tuple[Point, Measured | None]]) -> dict[str, object]:
    """The last value of each run that has measured it."""
    ends = [(run.name, value, known(float(one.values[-1]))) for (run, value), one in found if one is not None]
    return {
        "place": place,
        "measure": measure,
        "points": [{"run": name, "value": value, "loss": end} for name, value, end in ends],
    }


def _plain(value: object) -> object:
    """The value as JSON has it."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _order(value: object) -> tuple[bool, float, str]:
    is_number = isinstance(value, int | float)
    return (not is_number, float(value) if isinstance(value, int | float) else 0.0, str(value))
