"""Two evaluations on the same items: the difference of their accuracies, with its uncertainty."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from megaslm.errors import DataError
from megaslm.evaluation.records import RESULTS, Results
from megaslm.files import looked_in, read_back
from megaslm.tasks.statistics import Comparison, compared

_SHOWN_HASH = 12
_ANSWERS_ONLY = "only evaluations of answers can be compared, not those of losses"


class TaskComparison(NamedTuple):
    """The comparison on one task, by the share of right answers of each item."""

    task: str
    items: int
    first: float
    second: float
    comparison: Comparison


def read_results(folder: Path) -> Results:
    """The results of a finished evaluation.

    Raises:
        DataError: the folder holds none.
    """
    path = folder / RESULTS
    if not path.is_file():
        where = looked_in(folder)
        raise DataError(f"{folder}: holds no {RESULTS}{where}; name the output of a finished `megaslm evaluate`")
    return read_back(Results, path.read_bytes(), str(path), "evaluate again")


def compare(first: Path, second: Path) -> list[TaskComparison]:
    """Compares two evaluations task by task.

    Raises:
        DataError: they have no task in common, a task had other items, or an evaluation has no answers.
    """
    results = read_results(first), read_results(second)
    common = [name for name in results[0].tasks if name in results[1].tasks]
    if not common:
        raise DataError(
            f"{first} has the tasks {', '.join(results[0].tasks)}, {second} has {', '.join(results[1].tasks)}: none is "
            "common to both"
        )
    return [_compare_task(name, (first, second), results) for name in common]


def _compare_task(name: str, folders: tuple[Path, Path], results: tuple[Results, Results]) -> TaskComparison:
    for part in ("data_sha256", "grader"):
        found = [getattr(each.tasks[name], part) for each in results]
        shown = [each[:_SHOWN_HASH] for each in found] if part == "data_sha256" else found
        if found[0] != found[1]:
            what = "other items" if part == "data_sha256" else "another grader"
            raise DataError(
                f"{folders[1]} has {what} of {name} than {folders[0]} ({shown[1]}, {shown[0]}); evaluate "
                "both models on the same files, with the same task file and limit"
            )
    scores = [dict(_scores(folder / f"{name}.jsonl")) for folder in folders]
    items = sorted(scores[0])
    ordered = [[score[item] for item in items] for score in scores]
    means = [sum(each) / len(each) for each in ordered]
    return TaskComparison(name, len(items), means[0], means[1], compared(*ordered))


def _scores(path: Path) -> Iterator[tuple[int, float]]:
    """Each item's share of right answers, or its score by a metric of lm-eval."""
    if not path.is_file():
        raise DataError(f"{path}: is missing; {_ANSWERS_ONLY}")
    scores: dict[int, list[float]] = {}
    # A model may write U+2028 and its like, at which splitlines would end a line.
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        answered = json.loads(line)
        if not answered.keys() & {"score", "verdict"}:
            raise DataError(f"{path}: has losses and no answers; {_ANSWERS_ONLY}")
        score = answered["score"] if "score" in answered else float(answered["verdict"] == "right")
        scores.setdefault(answered["item"], []).append(score)
    for item, found in scores.items():
        yield item, sum(found) / len(found)
