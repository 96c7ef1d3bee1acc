"""The counts of a task's result, by this build and by earlier ones."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from megaslm.config.task import Task
from megaslm.evaluation.records import Answered, Results, TaskResult
from megaslm.evaluation.summary import of_answers
from megaslm.evaluation.view import show_results
from tests.evaluations import description

SETTINGS: dict[str, Any] = {"files": ["a"], "format": "jsonl", "question": "{q}", "answer": "{a}"}


def answered(item: int, programs: int, failed: int | None) -> Answered:
    shared: dict[str, Any] = {"sample": 0, "question": "q", "reference": "5", "output": "o", "answer": "5"}
    counts: dict[str, Any] = {"tokens": 3, "ended": "eos", "programs": programs, "programs_timed_out": 0}
    return Answered(item=item, verdict="right", programs_failed=failed, **shared, **counts)


def result(*answers: Answered, interpreter: bool = True) -> TaskResult:
    task = Task.model_validate({**SETTINGS, "interpreter": interpreter})
    return of_answers(task, answers, [1], task_sha256="t", data_sha256="d")


def test_programs_are_counted_and_the_answers_that_have_them() -> None:
    found = result(answered(0, 0, 0), answered(1, 2, 1), answered(2, 3, 3), answered(3, 1, 0))
    assert (found.answers_with_programs, found.answers_with_done_programs) == (3, 2)
    assert (found.programs, found.programs_failed) == (6, 4)


@pytest.mark.parametrize(
    "found",
    [result(answered(0, 0, 0), interpreter=False), result(answered(0, 1, 0), answered(1, 1, None))],
    ids=["no interpreter", "answers of an earlier build"],
)
def test_counts_that_are_not_known_are_null(found: TaskResult) -> None:
    assert (found.answers_with_programs, found.answers_with_done_programs, found.programs_failed) == (None, None, None)


def test_records_of_earlier_builds_are_read() -> None:
    new = {"answers_with_programs", "answers_with_done_programs", "programs_failed"}
    before = result(answered(0, 2, 1)).model_dump(exclude=new)
    assert TaskResult.model_validate(before).programs == 2
    line = answered(0, 2, None).model_dump(exclude=new)
    assert Answered.model_validate(line).programs_failed is None


@pytest.mark.parametrize("interpreter", [True, False])
def test_the_table_shows_programs_where_a_task_runs_them(interpreter: bool) -> None:
    tasks = {"plain": result(answered(0, 0, 0), interpreter=False)}
    if interpreter:
        tasks["tools"] = result(answered(0, 17, 4), answered(1, 0, 0))
    written = StringIO()
    show_results(Console(width=160, file=written), Results(description=description(), tasks=tasks, seconds=1), None)
    rows = [line.split() for line in written.getvalue().splitlines()]
    assert ("failed" in rows[0]) == interpreter
    assert len(rows) == 1 + len(tasks)
    if interpreter:
        assert rows[2][-3:] == ["1", "17", "4"]
