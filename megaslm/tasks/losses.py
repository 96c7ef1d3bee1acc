"""Losses of written solutions and of choices, for models that are too small to answer."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from megaslm.config.task import Task
from megaslm.errors import ConfigError, DataError
from megaslm.tasks.grading import letter_of
from megaslm.tasks.items import Item

_NATS_PER_BIT = math.log(2)


class MeasuredItem(BaseModel):
    """The losses of one item."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    item: int
    solution_nats: float | None = None
    """-ln p(solution | prompt)."""
    solution_tokens: int | None = None
    solution_bytes: int | None = None
    choice_nats: tuple[float, ...] = ()
    """-ln p(choice | prompt) of each choice."""
    choice_bytes: tuple[int, ...] = ()
    right_choice: int | None = None


class Losses(NamedTuple):
    """The losses of a task. Lists have one value for each item with a solution, or with choices."""

    nats_per_token: list[float]
    """Of each written solution."""
    bits_per_byte: float | None
    """Of all written solutions together; None without one."""
    is_chosen: list[bool]
    """Whether the right choice is the most likely one."""
    is_chosen_per_byte: list[bool]
    """Whether it is so per byte of the choices' texts."""


def require_losses(where: str, task: Task, items: Iterable[Item]) -> None:
    """Checks whether the losses of a task can be measured. `where` is the task's name in messages.

    Raises:
        ConfigError: the task has neither solution nor choices.
        DataError: a choice of an item is empty, or its right answer is no letter of a choice.
    """
    if task.solution is None and not task.choices:
        raise ConfigError(
            f"{where}: has neither solution nor choices, so that no loss can be measured; set one of them in the task "
            "file, or leave the task out"
        )
    for item in items if task.choices else ():
        letters = [chr(ord("A") + place) for place in range(len(item.choices))]
        empty = [letter for letter, text in zip(letters, item.choices, strict=True) if not text.strip()]
        if empty:
            raise DataError(
                f"{where}: the choice {empty[0]} of item {item.number} is empty; correct `choices` in the task file"
            )
        if letter_of(item.answer) not in letters:
            raise DataError(
                f"{where}: the right answer of item {item.number} is {item.answer!r}; expected one of the letters "
                f"{', '.join(letters)}: correct `answer` or `choices` in the task file"
            )


def pairs_of(items: Iterable[Item]) -> list[tuple[str, str]]:
    """(context, continuation) of each item's solution and choices, in the order that `measured_items` expects."""
    return [
        (item.prompt, _continuation(item.prompt, text))
        for item in items
        for text in (*([item.solution] if item.solution else []), *item.choices)
    ]


def measured_items(items: Iterable[Item], losses: Iterable[tuple[float, int]]) -> list[MeasuredItem]:
    """The items with `losses`: the nats and the tokens of each pair of `pairs_of`."""
    left = iter(losses)
    return [_measured_item(item, left) for item in items]


def _measured_item(item: Item, losses: Iterator[tuple[float, int]]) -> MeasuredItem:
    nats, tokens = next(losses) if item.solution else (None, None)
    choices = [next(losses)[0] for _ in item.choices]
    return MeasuredItem(
        item=item.number,
        solution_nats=nats,
        solution_tokens=tokens,
        solution_bytes=len(item.solution.encode()) if item.solution else None,
        choice_nats=tuple(choices),
        choice_bytes=tuple(len(text.encode()) for text in item.choices),
        right_choice=ord(letter_of(item.answer)) - ord("A") if choices else None,
    )


def losses_of(measured: Iterable[MeasuredItem]) -> Losses:
    """The losses of a task's items, in any order."""
    items = sorted(measured, key=lambda each: each.item)
    solved = [
        (each.solution_nats, each.solution_tokens, each.solution_bytes)
        for each in items
        if each.solution_nats is not None and each.solution_tokens and each.solution_bytes
    ]
    total_bytes = sum(size for _, _, size in solved)
    choosing = [each for each in items if each.right_choice is not None]
    return Losses(
        nats_per_token=[nats / tokens for nats, tokens, _ in solved],
        bits_per_byte=sum(nats for nats, _, _ in solved) / _NATS_PER_BIT / total_bytes if total_bytes else None,
        is_chosen=[_likeliest(each.choice_nats) == each.right_choice for each in choosing],
        is_chosen_per_byte=[
            _likeliest([nats / size for nats, size in zip(each.choice_nats, each.choice_bytes, strict=True)])
            == each.right_choice
            for each in choosing
        ],
    )


def _continuation(prompt: str, text: str) -> str:
    return text if prompt[-1:].isspace() else f" {text}"


def _likeliest(nats: Sequence[float]) -> int:
    return min(range(len(nats)), key=nats.__getitem__)
