"""The items of a task: question, right answer, prompt."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaslm.config.task import Example, Task
from megaslm.config.template import template_parts
from megaslm.errors import DataError
from megaslm.grading.answers import final_answer
from megaslm.tasks.records import records_of


@dataclass(frozen=True)
class Item:
    """One problem. `number`: its place in the task, from 0. `solution` and `choices`: empty where the task has none."""

    number: int
    question: str
    answer: str
    prompt: str
    solution: str = ""
    choices: tuple[str, ...] = ()


def items_of(task: Task, data: Path, *, limit: int | None = None) -> list[Item]:
    """The items of a task, the first `limit` of them where given.

    Raises:
        DataError: a file is missing or of another format, or a record lacks a field.
    """
    beginning = "".join(
        filled(task.example, {"question": example.question, "solution": example.solution}, "example", "example")
        for example in _examples(task, data)
    )
    items: list[Item] = []
    for place, record in records_of(task, data, task.files):
        if len(items) == limit:
            break
        question = _question(task, record, place)
        items.append(
            Item(
                number=len(items),
                question=question,
                answer=_answer(task, record, place),
                prompt=beginning + filled(task.prompt, {"question": question}, place, "prompt"),
                solution="" if task.solution is None else filled(task.solution, record, place, "solution"),
                choices=tuple(filled(choice, record, place, "choices") for choice in task.choices),
            )
        )
    return items


def filled(template: str, fields: Mapping[str, Any], place: str, setting: str) -> str:
    """A template with a record's values. Lists of texts are joined by commas. Dots lead into objects.

    `place` is that of the record, `setting` that of the template in the task file.

    Raises:
        DataError: the record lacks a field, or its value is no text, number or list of them.
    """
    return "".join(
        part.literal + ("" if part.field is None else _value(fields, part.field, place, f"{setting} = {template!r}"))
        for part in template_parts(template)
    )


def _value(fields: Mapping[str, Any], name: str, place: str, setting: str) -> str:
    value: Any = fields
    for part in [name] if name in fields else name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            there = ", ".join(map(str, fields)) or "none"
            raise DataError(
                f"{setting}: no field {name!r} in {place}; it has {there}: correct it, or `format`, in the task file"
            )
        value = value[part]
    if isinstance(value, list) and all(isinstance(each, str | int | float) for each in value):
        return ", ".join(map(str, value))
    if not isinstance(value, str | int | float):
        found = "null" if value is None else f"a {type(value).__name__}"
        raise DataError(f"{place}: the field {name} holds {found}; expected text, a number or a list of them")
    return str(value)


def _question(task: Task, record: Mapping[str, Any], place: str) -> str:
    more = (
        filled(text, record, place, f"when_present.{field}")
        for field, text in task.when_present.items()
        if record.get(field)
    )
    return "".join((filled(task.question, record, place, "question"), *more)).strip()


def _answer(task: Task, record: Mapping[str, Any], place: str) -> str:
    answer = filled(task.answer, record, place, "answer")
    if task.answer_pattern is not None:
        found = re.search(task.answer_pattern, answer, re.DOTALL)
        answer = found[1] if found else answer
    if task.answer_in == "boxed":
        if "boxed" not in answer:
            raise DataError(f"{place}: its solution has no \\boxed{{}} with the right answer")
        answer = final_answer(answer, "rho")
    if not answer.strip():
        raise DataError(f"{place}: its answer is empty")
    return answer.strip()


def _examples(task: Task, data: Path) -> Iterator[Example]:
    if task.examples_from is None:
        yield from task.examples
        return
    if task.solution is None:
        raise DataError("examples_from needs `solution`, the template of a written solution")
    records = records_of(task, data, task.examples_from.files)
    for _, (place, record) in zip(range(task.examples_from.count), records, strict=False):
        yield Example(
            question=_question(task, record, place), solution=filled(task.solution, record, place, "solution")
        )
