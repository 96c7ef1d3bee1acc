"""What makes the items of an evaluation the same items, and in which batches they are done."""

from dataclasses import replace

import pytest

from megaslm.config.task import Task
from megaslm.evaluation.work import PlannedTask
from megaslm.tasks.items import Item

ITEM = Item(0, "a question", "B", "a prompt", "a solution", ("one", "two"))


def hash_of(item: Item) -> str:
    task = Task.model_validate({"files": ["a.jsonl"], "format": "jsonl", "question": "{q}", "answer": "{a}"})
    return PlannedTask("a-task", task, (item,)).data_sha256


@pytest.mark.parametrize(
    "change", [{"question": "another"}, {"answer": "A"}, {"solution": "another"}, {"choices": ("two", "one")}], ids=str
)
def test_items_that_ask_something_else_have_another_hash(change: dict[str, object]) -> None:
    assert hash_of(ITEM) != hash_of(replace(ITEM, **change))  # type: ignore[arg-type]


def test_the_prompt_is_not_in_the_hash_of_the_items() -> None:
    """Examples before a question belong to the settings."""
    assert hash_of(ITEM) == hash_of(replace(ITEM, prompt="another"))
