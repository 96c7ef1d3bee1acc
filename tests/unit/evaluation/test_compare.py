"""Two evaluations are compared by the lines of their files, whatever a model wrote into them."""

from pathlib import Path

import pytest

from megaslm.errors import DataError
from megaslm.evaluation.compare import compare
from megaslm.evaluation.records import RESULTS, Answered, Results, TaskResult
from tests.evaluations import description
from tests.messages import Says

LINE_ENDS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh\r\ni\nj"


def write_evaluation(folder: Path, outputs: list[str], right: list[bool]) -> Path:
    """A finished evaluation of one task, with a line for each item."""
    folder.mkdir()
    task = TaskResult(items=len(outputs), samples=1, grader="rho", task_sha256="t", data_sha256="d")
    described = description(tasks={"sums": "t"}, data={"sums": "d"})
    results = Results(description=described, tasks={"sums": task}, seconds=1)
    (folder / RESULTS).write_text(results.model_dump_json())
    lines = [
        Answered(
            item=item,
            sample=0,
            question=output,
            reference=output,
            output=output,
            answer=output,
            verdict="right" if is_right else "wrong",
            tokens=1,
            ended="eos",
            programs=0,
            programs_timed_out=0,
        ).model_dump_json()
        for item, (output, is_right) in enumerate(zip(outputs, right, strict=True))
    ]
    (folder / "sums.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def test_answers_may_hold_every_character_that_ends_a_line_elsewhere(tmp_path: Path) -> None:
    first = write_evaluation(tmp_path / "first", [LINE_ENDS, "1", LINE_ENDS], [True, False, False])
    second = write_evaluation(tmp_path / "second", ["1", LINE_ENDS, "2"], [True, True, True])
    assert "\u2028" in (first / "sums.jsonl").read_text(encoding="utf-8")
    (found,) = compare(first, second)
    assert (found.items, found.second) == (3, 1)
    assert found.first == pytest.approx(1 / 3)
    assert (found.comparison.only_first, found.comparison.only_second) == (0, 2)


def test_equal_answers_differ_by_0_with_an_interval(tmp_path: Path) -> None:
    folders = [write_evaluation(tmp_path / name, ["1"] * 64, [False] * 64) for name in ("first", "second")]
    (found,) = compare(*folders)
    assert found.comparison.difference == 0
    assert found.comparison.interval == pytest.approx((-0.0567, 0.0567), abs=1e-4)


def test_evaluations_of_losses_are_refused(tmp_path: Path, says: Says) -> None:
    folders = [write_evaluation(tmp_path / name, ["1"], [True]) for name in ("first", "second")]
    for folder in folders:
        (folder / "sums.jsonl").write_text('{"item": 0, "nats": 1.5, "tokens": 3}\n', encoding="utf-8")
    with pytest.raises(DataError) as refused:
        compare(*folders)
    says(refused, folders[0] / "sums.jsonl")
