"""Task files and records that do not fit together are refused; what fits is read in order."""

from pathlib import Path
from typing import Any

import pytest

from megaslm.config.task import Task
from megaslm.errors import ConfigError, DataError
from megaslm.tasks.grading import extracted, letter_of
from megaslm.tasks.items import filled, items_of
from megaslm.tasks.task_files import load_tasks
from tests.messages import Says

BASE: dict[str, Any] = {"files": ["a.jsonl"], "format": "jsonl", "question": "{q}", "answer": "{a}"}
CONTENTS = {
    "missing": None,
    "empty": "",
    "not json": "{",
    "an array": "[1]",
    "no field": '{"q": "1"}',
    "null": '{"q": "1", "a": null}',
    "empty answer": '{"q": "1", "a": " "}',
}


def task(**changes: Any) -> Task:
    return Task.model_validate({**BASE, **changes})


@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_that_does_not_fit_is_refused(name: str, tmp_path: Path, says: Says) -> None:
    content = CONTENTS[name]
    if content is not None:
        (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError) as refused:
        items_of(task(), tmp_path)
    says(refused)


@pytest.mark.parametrize(
    "setting",
    [
        "answer=",
        "question=no field",
        "answer_pattern=(",
        "answer_pattern=no group",
        "prompt={question} {other}",
        "columns=[a]",
        "grader=best",
        "format=text",
        "leave_out={a: '('}",
        "examples_from={files: [b], count: 1}",
        "unknown=1",
    ],
)
def test_a_setting_that_does_not_fit_is_refused(setting: str, says: Says) -> None:
    with pytest.raises(ConfigError) as refused:
        load_tasks(["gsm8k"], [setting])
    says(refused)


def test_an_unknown_task_is_refused(says: Says) -> None:
    with pytest.raises(ConfigError) as refused:
        load_tasks(["gsm9k"])
    says(refused)


def test_examples_may_come_from_the_train_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"q": "Why?", "a": "5", "s": "so 5"}')
    (tmp_path / "train.jsonl").write_text(
        '{"q": "How?", "a": "1", "s": "so 1"}\n{"q": "Who?", "a": "2", "s": "so 2"}\n'
    )
    taught = task(solution="{s}", examples_from={"files": ["train.jsonl"], "count": 1})
    assert items_of(taught, tmp_path)[0].prompt == "Question: How?\nAnswer: so 1\n\nQuestion: Why?\nAnswer:"


def test_a_question_may_hold_separators_of_unicode(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"q": "one\u2028two\x85three", "a": 1}\r\n\n{"q": "x", "a": 2}', encoding="utf-8"
    )
    assert [item.question for item in items_of(task(), tmp_path)] == ["one\u2028two\x85three", "x"]


@pytest.mark.parametrize("pattern", ["/a.jsonl", "", ".", "**a"])
def test_a_path_that_does_not_lie_below_the_data_is_refused(pattern: str, tmp_path: Path, says: Says) -> None:
    with pytest.raises(DataError) as refused:
        items_of(task(files=[pattern]), tmp_path)
    says(refused)


def test_a_limit_takes_the_first_items(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"q": "{n}", "a": {n}}}\n' for n in range(5)))
    assert [item.answer for item in items_of(task(), tmp_path, limit=2)] == ["0", "1"]


def test_templates_take_numbers_lists_and_nested_fields() -> None:
    fields = {"a": 1.5, "b": ["x", "y"], "c": {"d": "z"}, "e.f": "w"}
    assert filled("{a} {b} {c.d} {e.f} {{}}", fields, "here", "question") == "1.5 x, y z w {}"


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("The answer is (B).", "B"),
        ("So the answer is C", "C"),
        ("\\boxed{D}", "D"),
        ("\\boxed{\\text{(A)}}", "A"),
        ("I think b) fits", "B"),
        ("None of them", ""),
        ("", ""),
    ],
)
def test_letters(output: str, letter: str) -> None:
    assert extracted(output, "letter") == letter
    assert letter_of(f"({letter})") == letter
