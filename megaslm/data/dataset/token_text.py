"""The text of each token of a document."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

_NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"
_MOST_TOKENS = 16
"""Tokens that are tried together: a character has up to 4 bytes, and a token may hold bytes of two characters."""


@dataclass(frozen=True)
class Piece:
    """Tokens that make whole characters together: one, or as many as share a character's bytes."""

    text: str
    """Their text; bytes that are no UTF-8 are replacement characters."""
    first: int
    """The place of the first token in its row."""
    tokens: int
    """How many they are."""


def pieces(tokenizer: Tokenizer, ids: Sequence[int], first: int, *, after: int | None) -> Iterator[Piece]:
    """The text of `ids`, which stand in their row from `first` on, piece by piece; joined they are the whole text.

    A tokenizer decodes a token otherwise at the beginning of a text than within it (a word's space belongs to the
    word). `after` is a token to be taken as standing before `ids`; null where a text begins with them.
    """
    before = [] if after is None else [after]
    start = 0
    while start < len(ids):
        length, text = _shortest_whole(tokenizer, before, ids[start : start + _MOST_TOKENS])
        yield Piece(text, first + start, length)
        # After a stray byte a decoder would take the next character's bytes for strays as well.
        if _NO_CHARACTER not in text:
            before = list(ids[start : start + length])
        start += length


def _shortest_whole(tokenizer: Tokenizer, before: list[int], ids: Sequence[int]) -> tuple[int, str]:
    """How many of `ids` make whole characters, and which; one and its replacement where they are no UTF-8."""
    for length in range(1, len(ids) + 1):
        text = _text_after(tokenizer, before, list(ids[:length]))
        if _NO_CHARACTER not in text:
            return length, text
    return 1, _text_after(tokenizer, before, list(ids[:1]))


def _text_after(tokenizer: Tokenizer, before: list[int], ids: list[int]) -> str:
    known, text = _text(tokenizer, before), _text(tokenizer, before + ids)
    # A decoder that mends spaces may change what stands before: then the tokens speak for themselves.
    return text.removeprefix(known) if text.startswith(known) else _text(tokenizer, ids)


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False))
