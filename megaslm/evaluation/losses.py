"""Losses of written solutions and of choices, for models that are too small to answer."""

from collections.abc import Sequence

from megaslm.evaluation.records import MeasuredItem
from megaslm.generation.log_likelihood import log_likelihoods
from megaslm.generation.text_tokens import TextTokens
from megaslm.model.plain_lm import PlainLM
from megaslm.tasks.grading import letter_of
from megaslm.tasks.items import Item


def measure(lm: PlainLM, tokens: TextTokens, items: Sequence[Item], *, batch_rows: int) -> list[MeasuredItem]:
    """The losses of items: of their solutions, and of each of their choices.

    Raises:
        PromptTooLong: a prompt with its solution exceeds the model's context.
    """
    pairs = [
        (item.prompt, _continuation(item.prompt, text))
        for item in items
        for text in (*([item.solution] if item.solution else []), *item.choices)
    ]
    results = iter(log_likelihoods(lm, tokens, pairs, batch_rows=batch_rows))
    measured = []
    for item in items:
        solution = next(results) if item.solution else None
        choices = [next(results) for _ in item.choices]
        measured.append(
            MeasuredItem(
                item=item.number,
                solution_nats=None if solution is None else -solution.nats,
                solution_tokens=None if solution is None else solution.tokens,
                solution_bytes=len(item.solution.encode()) if item.solution else None,
                choice_nats=tuple(-each.nats for each in choices),
                choice_bytes=tuple(len(text.encode()) for text in item.choices),
                right_choice=ord(letter_of(item.answer)) - ord("A") if choices else None,
            )
        )
    return measured


def _continuation(prompt: str, text: str) -> str:
    return text if prompt[-1:].isspace() else f" {text}"
