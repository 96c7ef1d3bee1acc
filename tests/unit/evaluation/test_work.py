"""What makes the items of an evaluation the same items, and in which batches they are done."""

from dataclasses import replace
from pathlib import Path

import pytest

from megaslm.config.task import Task
from megaslm.evaluation.request import EvaluationRequest
from megaslm.evaluation.work import PlannedTask, batches_of
from megaslm.tasks.items import Item

TASK = Task.model_validate({"files": ["a.jsonl"], "format": "jsonl", "question": "{q}", "answer": "{a}"})
ITEM = Item(0, "a question", "B", "a prompt", "a solution", ("one", "two"))


def hash_of(item: Item) -> str:
    return PlannedTask("a-task", TASK, (item,)).data_sha256


@pytest.mark.parametrize(
    "change", [{"question": "another"}, {"answer": "A"}, {"solution": "another"}, {"choices": ("two", "one")}], ids=str
)
def test_items_that_ask_something_else_have_another_hash(change: dict[str, object]) -> None:
    assert hash_of(ITEM) != hash_of(replace(ITEM, **change))  # type: ignore[arg-type]


def test_the_prompt_is_not_in_the_hash_of_the_items() -> None:
    """Examples before a question belong to the settings."""
    assert hash_of(ITEM) == hash_of(replace(ITEM, prompt="another"))


def test_a_batch_holds_prompts_of_similar_length_the_longest_first() -> None:
    lengths = [(3, 0), (9, 0), (2, 5), (9, 0)]
    items = tuple(Item(number, "", "", "p" * prompt, "s" * size) for number, (prompt, size) in enumerate(lengths))
    planned = PlannedTask("a-task", TASK, items)
    request = EvaluationRequest("a-model", {"a-task": TASK}, Path("data"), Path("out"), samples=2, batch_rows=3)
    batches = list(batches_of(planned, request))
    assert [[(item.number, sample) for item, sample in batch.items] for batch in batches] == [
        [(1, 0), (1, 1), (3, 0)],
        [(3, 1), (2, 0), (2, 1)],
        [(0, 0), (0, 1)],
    ]
    assert len({batch.name for batch in batches}) == 3
    # A loss is measured once, however many answers are asked for.
    (first, second) = batches_of(planned, replace(request, measure="losses"))
    assert [sample for _, sample in (*first.items, *second.items)] == [0, 0, 0, 0]
