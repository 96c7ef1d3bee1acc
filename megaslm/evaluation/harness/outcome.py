"""lm-eval's results of one task, as a result of `evaluate`."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megaslm.config.task import HarnessTask
from megaslm.evaluation.harness.order import Outcome
from megaslm.evaluation.records import HarnessItem, TaskResult
from megaslm.evaluation.summary import estimate

Sample = Mapping[str, Any]


def outcome_of(name: str, setting: HarnessTask, found: Mapping[str, Any]) -> Outcome:
    """The outcome of a task from what lm-eval's `simple_evaluate` returns, which has the samples of each part of it.

    The accuracy is the mean over all items of the parts: equal to that of lm-eval where it weights them by their size.
    """
    parts: Mapping[str, Sequence[Sample]] = found["samples"]
    metric, chosen = _metric(setting, next(iter(parts.values()))[0])
    samples = [(part, sample) for part, all_ in parts.items() for sample in all_ if sample["filter"] == chosen]
    items = tuple(_item(number, part, metric, sample) for number, (part, sample) in enumerate(samples))
    rows = {row: _numbers(values) for row, values in {**found["results"], **found.get("groups", {})}.items()}
    return Outcome(
        result=TaskResult(
            items=len(items),
            samples=1,
            grader=f"lm-eval {metric}" + ("" if chosen == "none" else f",{chosen}"),
            accuracy=estimate([item.score for item in items]),
            metrics=rows.get(name, {}),
            task_sha256=_sha256([setting.model_dump(), found["configs"], found["versions"]]),
            data_sha256=_sha256([[part, sample["doc_hash"], sample["target_hash"]] for part, sample in samples]),
        ),
        items=items,
        rows=rows,
    )


def _metric(setting: HarnessTask, sample: Sample) -> tuple[str, str]:
    """The metric and the filter that are asked for; else the first ones of lm-eval's task file."""
    name, _, chosen = (setting.metric or "").partition(",")
    return name or sample["metrics"][0], chosen or sample["filter"]


def _item(number: int, part: str, metric: str, sample: Sample) -> HarnessItem:
    return HarnessItem(
        item=number,
        task=part,
        document=sample["doc_id"],
        document_sha256=sample["doc_hash"],
        target=str(sample["target"]),
        responses=json.loads(json.dumps(sample["filtered_resps"], default=str)),
        score=float(sample[metric]),
        metrics=dict(_scores(sample)),
    )


def _scores(sample: Sample) -> Iterator[tuple[str, float]]:
    """Metrics with a number for each item; a few are made of all items together."""
    for name in sample["metrics"]:
        if isinstance(sample[name], int | float):
            yield name, float(sample[name])


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of lm-eval's row, `acc,none` as `acc`."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in row.items()
        if "," in key and isinstance(value, int | float) and math.isfinite(value)
    }


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
