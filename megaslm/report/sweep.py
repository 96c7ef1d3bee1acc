"""Runs that differ in one setting only, as a curve over it (as in figure 9 of Rho-1)."""

from collections.abc import Sequence
from decimal import Decimal

from megaslm.report.packed import known
from megaslm.report.runs import ReportedRun
from megaslm.report.settings import difference, settings
from megaslm.report.targets import baseline_of

KEEP_RATIO = "slm.keep_ratio"
_MISSING = "not set"


def sweep_of(runs: Sequence[ReportedRun]) -> dict[str, object] | None:
    """The largest group of runs that differ in one setting only; None where no two do."""
    found = _largest(runs)
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
        "left_out": [
            f"{run.name} is left out: it has made {run.last_step:,} of {run.total_steps:,} steps"
            for run, _ in points
            if not run.is_complete
        ],
        "metrics": [*_losses(complete), *_tasks(complete)],
    }


Point = tuple[ReportedRun, object]


def _largest(runs: Sequence[ReportedRun]) -> tuple[str, list[ReportedRun]] | None:
    all_settings = [settings(run.config) for run in runs]
    keys = dict.fromkeys(key for one in all_settings for key in one)
    differing = [key for key in keys if len({repr(one.get(key)) for one in all_settings}) > 1]
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


def _losses(points: Sequence[Point]) -> list[dict[str, object]]:
    places = dict.fromkeys(place for run, _ in points for place in run.metrics.validations)
    return [
        {
            "place": place,
            "measure": "loss in nats",
            "points": [
                {"run": run.name, "value": value, "loss": known(float(run.metrics.validations[place].values[-1]))}
                for run, value in points
                if place in run.metrics.validations
            ],
        }
        for place in places
    ]


def _tasks(points: Sequence[Point]) -> list[dict[str, object]]:
    tasks = dict.fromkeys(task for run, _ in points for task in run.metrics.tasks)
    return [
        {
            "place": name,
            "measure": measure,
            "points": [
                {"run": run.name, "value": value, "loss": known(float(run.metrics.tasks[name, measure].values[-1]))}
                for run, value in points
                if (name, measure) in run.metrics.tasks
            ],
        }
        for name, measure in tasks
    ]


def _plain(value: object) -> object:
    """The value as JSON has it."""
    if isinstance(value, Decimal):
        return float(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _order(value: object) -> tuple[bool, float, str]:
    is_number = isinstance(value, int | float)
    return (not is_number, float(value) if isinstance(value, int | float) else 0.0, str(value))
