"""What lm-eval gives for a task of several parts, as a result of `evaluate` that can be compared with another."""

from pathlib import Path
from typing import Any

import pytest

from megaslm.config.task import HarnessTask
from megaslm.errors import DataError
from megaslm.evaluation.compare import compare
from megaslm.evaluation.harness.order import Outcome
from megaslm.evaluation.harness.outcome import outcome_of
from megaslm.evaluation.records import Description, Results
from tests.messages import Says

PARTS = {"set_a": [1.0, 0.0, 1.0], "set_b": [0.0]}


def sample(part: str, document: int, score: float, chosen: str, **changes: Any) -> dict[str, Any]:
    return {
        "doc_id": document,
        "target": 1,
        "filtered_resps": [(-2.5, False), (-1.0, True)],
        "filter": chosen,
        "metrics": ["acc", "f1", "of_all"],
        "doc_hash": f"{part} {document}",
        "target_hash": "1",
        "acc": score if chosen == "strict" else 1.0,
        "f1": 0.25,
        "of_all": (1, 2),
        **changes,
    }


def found(parts: dict[str, list[float]] = PARTS) -> dict[str, Any]:
    return {
        "samples": {
            part: [sample(part, *each, chosen) for chosen in ("strict", "loose") for each in enumerate(scores)]
            for part, scores in parts.items()
        },
        "results": {"set": {"alias": "set", "acc,strict": 0.5, "acc_stderr,strict": "N/A", "f1,none": 0.25}},
        "groups": {},
        "configs": {},
        "versions": {"set_a": 1.0},
    }


def test_a_task_of_parts_is_the_mean_over_all_items() -> None:
    outcome = outcome_of("set", HarnessTask(), found())
    assert outcome.result.accuracy is not None
    assert (outcome.result.items, outcome.result.accuracy.mean) == (4, 0.5)
    assert outcome.result.grader == "lm-eval acc,strict"
    assert outcome.result.metrics == {"acc,strict": 0.5, "f1": 0.25}
    assert [(item.task, item.document, item.score) for item in outcome.items] == [
        ("set_a", 0, 1.0),
        ("set_a", 1, 0.0),
        ("set_a", 2, 1.0),
        ("set_b", 0, 0.0),
    ]
    assert outcome.items[0].metrics == {"acc": 1.0, "f1": 0.25}
    assert outcome.items[0].responses == [[-2.5, False], [-1.0, True]]


@pytest.mark.parametrize(
    ("metric", "grader", "mean"),
    [("f1", "lm-eval f1,strict", 0.25), ("acc,loose", "lm-eval acc,loose", 1.0)],
)
def test_the_metric_that_is_asked_for_is_reported(metric: str, grader: str, mean: float) -> None:
    result = outcome_of("set", HarnessTask(metric=metric), found()).result
    assert result.accuracy is not None
    assert (result.grader, result.accuracy.mean) == (grader, mean)


def test_hashes_tell_items_and_settings_apart() -> None:
    results = [
        outcome_of("set", HarnessTask(shots=shots), found(parts)).result
        for shots, parts in ((0, PARTS), (5, PARTS), (0, {"set_a": [1.0]}))
    ]
    assert results[0].data_sha256 == results[1].data_sha256 != results[2].data_sha256
    assert results[0].task_sha256 != results[1].task_sha256


def write(folder: Path, outcome: Outcome) -> Path:
    folder.mkdir()
    description = Description(
        model="m", weights_sha256=None, server=False, measure="lm-eval", precision="fp32", tasks={}, data={},
        limit=None, samples=1, temperature=0, top_p=1, seed=0, batch_rows=1, megaslm_version="0",
    )  # fmt: skip
    results = Results(description=description, tasks={"set": outcome.result}, seconds=1)
    (folder / "results.json").write_text(results.model_dump_json())
    (folder / "set.jsonl").write_text("".join(f"{item.model_dump_json()}\n" for item in outcome.items))
    return folder


def test_two_are_compared_item_by_item(tmp_path: Path) -> None:
    first = write(tmp_path / "first", outcome_of("set", HarnessTask(), found()))
    better = {"set_a": [1.0, 1.0, 1.0], "set_b": [0.0]}
    second = write(tmp_path / "second", outcome_of("set", HarnessTask(), found(better)))
    (compared,) = compare(first, second)
    assert (compared.first, compared.second) == (0.5, 0.75)
    assert (compared.comparison.only_first, compared.comparison.only_second) == (0, 1)


def test_results_by_different_metrics_are_not_compared(tmp_path: Path, says: Says) -> None:
    first = write(tmp_path / "first", outcome_of("set", HarnessTask(), found()))
    second = write(tmp_path / "second", outcome_of("set", HarnessTask(metric="acc,loose"), found()))
    with pytest.raises(DataError) as refused:
        compare(first, second)
    says(str(refused.value), "lm-eval acc,strict", "lm-eval acc,loose")
