"""metrics.jsonl as columns. Reads what earlier builds wrote, and what a run is still writing."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megaslm.config.run_files import METRICS
from megaslm.observe.records import place_of

Numbers = NDArray[np.float64]

MEASURED = ("loss", "all_loss", "selected_ratio", "threshold", "learning_rate", "gradient_norm", "tokens_per_second")
"""The numbers of a step that are shown as curves."""
TASK_MEASURES = {
    "accuracy": "accuracy",
    "nats_per_token": "nats per token",
    "bits_per_byte": "bits per byte",
    "choice_accuracy": "choice accuracy",
    "choice_accuracy_per_byte": "choice accuracy per byte",
}
"""The numbers that a task has at a step, and their names."""


@dataclass(frozen=True)
class Measured:
    """A number that was measured at n steps."""

    step: Numbers
    tokens: Numbers
    """(n,) targets read by then."""
    values: Numbers
    """(n,) NaN where the number was NaN or infinite."""


@dataclass(frozen=True)
class Domain:
    """What a run read of one domain."""

    tokens: float
    passes: float | None
    selected_ratio: float | None
    """Over the last tenth of the steps."""


@dataclass(frozen=True)
class RunMetrics:
    """The metrics of a run, n of its steps."""

    step: Numbers
    """(n,) rising."""
    tokens: Numbers
    """(n,) targets read by then."""
    columns: dict[str, Numbers]
    """(n,) each of `MEASURED`; NaN where it was not measured."""
    second_pass_ratio: Numbers
    """(n,) the share of the targets with a second forward pass; NaN where the build did not tell."""
    keys: frozenset[str]
    """The keys that any step has."""
    validations: dict[str, Measured]
    """Losses in nats, by the place that was measured: a set and its domain."""
    validated_domain: dict[str, str]
    """The domain of each place."""
    tasks: dict[tuple[str, str], Measured]
    """By the task's name and the measure, one of the values of `TASK_MEASURES`."""
    domains: dict[str, Domain]
    skipped_steps: tuple[int, ...]
    """The steps that changed no weights."""
    unreadable_lines: int
    """Lines that are no records. A last line that is still being written does not count."""


@dataclass
class _Collected:
    steps: list[dict[str, Any]] = field(default_factory=list)
    skipped_steps: list[int] = field(default_factory=list)
    second_passes: dict[int, float] = field(default_factory=dict)
    """The share of targets with a second forward pass, by the last step of a report."""
    validations: dict[str, dict[int, tuple[float, float]]] = field(default_factory=dict)
    validated_domain: dict[str, str] = field(default_factory=dict)
    tasks: dict[tuple[str, str], dict[int, tuple[float, float]]] = field(default_factory=dict)

    def add(self, line: dict[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError where the line lacks what its kind has."""
        kind, step, tokens = line["kind"], int(line["step"]), float(line.get("tokens", math.nan))
        if kind == "step":
            if math.isnan(tokens):
                raise ValueError("a step without tokens")
            self._forget_from(step)
            self.steps.append(line)
        elif kind == "skipped":
            self._forget_from(step)
            self.skipped_steps.append(step)
        elif kind == "report":
            self.second_passes[step] = number(line.get("second_pass_ratio"))
        elif kind == "validation":
            place = place_of(line["name"], line["domain"])
            self.validated_domain[place] = line["domain"]
            self.validations.setdefault(place, {})[step] = (tokens, number(line["loss"]))
        elif kind in ("task", "task_losses"):
            for key, measure in TASK_MEASURES.items():
                if line.get(key) is not None:
                    self.tasks.setdefault((line["name"], measure), {})[step] = (tokens, number(line[key]))

    def _forget_from(self, step: int) -> None:
        """A step that comes again was made again after an interruption."""
        while self.steps and self.steps[-1]["step"] >= step:
            self.steps.pop()
        while self.skipped_steps and self.skipped_steps[-1] >= step:
            self.skipped_steps.pop()


def number(value: object) -> float:
    """A number of a record; NaN for null, which stands for NaN, for infinity, and for what was not measured."""
    return float(value) if isinstance(value, int | float) else math.nan


def read_metrics(run: Path) -> RunMetrics:
    """The metrics of a run folder. A run without the file has none yet."""
    collected, unreadable = _Collected(), 0
    for text in _whole_lines(run / METRICS):
        try:
            collected.add(json.loads(text))
        except (ValueError, KeyError, TypeError):
            unreadable += 1
    steps = collected.steps
    return RunMetrics(
        step=_column(steps, "step"),
        tokens=_column(steps, "tokens"),
        columns={name: _column(steps, name) for name in MEASURED},
        second_pass_ratio=_of_reports(collected.second_passes, _column(steps, "step")),
        keys=frozenset().union(*steps),
        validations={place: _measured(found) for place, found in collected.validations.items()},
        validated_domain=collected.validated_domain,
        tasks={task: _measured(found) for task, found in collected.tasks.items()},
        domains=_domains(steps),
        skipped_steps=tuple(collected.skipped_steps),
        unreadable_lines=unreadable,
    )


def _whole_lines(path: Path) -> Iterator[bytes]:
    if path.is_file():
        with path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))


def _column(steps: list[dict[str, Any]], name: str) -> Numbers:
    return np.array([number(step.get(name)) for step in steps], dtype=np.float64)


def _of_reports(found: dict[int, float], steps: Numbers) -> Numbers:
    """(n,) for each step the value of the report on it: of the first report that ends with it, or after it."""
    ends = sorted(found)
    values = np.array([found[end] for end in ends] + [math.nan])
    return values[np.searchsorted(np.array(ends, dtype=np.float64), steps)]


def _measured(found: dict[int, tuple[float, float]]) -> Measured:
    steps = sorted(found)
    return Measured(
        step=np.array(steps, dtype=np.float64),
        tokens=np.array([found[step][0] for step in steps]),
        values=np.array([found[step][1] for step in steps]),
    )


def _domains(steps: list[dict[str, Any]]) -> dict[str, Domain]:
    if not steps:
        return {}
    last, recent = steps[-1], steps[-max(1, len(steps) // 10) :]

    def ratio(name: str) -> float | None:
        found = [number(step["domain_ratio"].get(name)) for step in recent if step.get("domain_ratio")]
        known = [value for value in found if not math.isnan(value)]
        return sum(known) / len(known) if known else None

    passes = last.get("domain_passes") or {}
    tokens = last.get("domain_tokens") or {}
    return {name: Domain(float(count), passes.get(name), ratio(name)) for name, count in tokens.items()}
