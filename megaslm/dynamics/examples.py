"""The text of probe tokens, and examples of each class with their text in context."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from megaslm.dynamics.lines import CLASSES, FALLS, HIGH, LOW, RISES
from megaslm.dynamics.trajectories import Trajectories
from megaslm.observe.probe_files import ProbeRows
from megaslm.tokenizer.token_text import texts_of_row

_CONTEXT_TOKENS = 12


@dataclass(frozen=True)
class Example:
    """A token of a class, in its text."""

    kind: str
    """Its class."""
    domain: str
    row: int
    """The place of its row among the probe rows."""
    position: int
    """Its place in the row."""
    before: str
    token: str
    after: str
    losses: tuple[float, ...]
    """In nats, one per measurement."""


def token_texts(tokenizer: Tokenizer, rows: ProbeRows) -> list[list[str]]:
    """The text of each token of each row, see `texts_of_row`."""
    return [list(texts_of_row(tokenizer, row.tolist(), rows.eos_id)) for row in rows.tokens]


def examples_of(
    found: Trajectories,
    change: NDArray[np.float64],
    classes: NDArray[np.int8],
    texts: Sequence[Sequence[str]],
    *,
    each: int,
) -> tuple[Example, ...]:
    """Up to `each` examples of every class, each of another token id: the clearest ones.

    Of H→L and L→H these are the largest changes, of L→L the smallest last losses and of H→H the largest.
    """
    last = found.losses[:, -1]
    clearness: dict[int, NDArray[np.floating]] = {HIGH: last, RISES: change, FALLS: -change, LOW: -last}
    chosen = [
        token
        for number in range(len(CLASSES))
        for token in _clearest(np.flatnonzero(classes == number), clearness[number], found.ids, each)
    ]
    return tuple(_example(token, found, int(classes[token]), texts) for token in chosen)


def _clearest(
    tokens: NDArray[np.int64], clearness: NDArray[np.floating], ids: NDArray[np.int64], each: int
) -> Iterator[int]:
    order = tokens[np.argsort(-clearness[tokens], kind="stable")]
    _, firsts = np.unique(ids[order], return_index=True)
    for place in np.sort(firsts)[:each]:
        yield int(order[place])


def _example(token: int, found: Trajectories, number: int, texts: Sequence[Sequence[str]]) -> Example:
    row, position = int(found.row[token]), int(found.position[token])
    text = texts[row]
    return Example(
        kind=CLASSES[number],
        domain=found.rows.domains[found.domain[token]],
        row=row,
        position=position,
        before="".join(text[max(0, position - _CONTEXT_TOKENS) : position]),
        token=text[position],
        after="".join(text[position + 1 : position + 1 + _CONTEXT_TOKENS]),
        losses=tuple(found.losses[token].tolist()),
    )
