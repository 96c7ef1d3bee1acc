"""The text of single tokens, as they stand in a text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

from tokenizers import Tokenizer

_NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"
_MOST_TOKENS = 16
"""Maximum number of tokens tried together: a character has up to 4 bytes, and a token may span two characters."""


@dataclass(frozen=True)
class TokenText:
    """Tokens that together make whole characters: one token, or several that share a character's bytes."""

    text: str
    """Their text. Bytes that are not UTF-8 are replacement characters."""
    first: int
    """The index of the first token in its row."""
    tokens: int
    """The number of tokens."""


def pieces(tokenizer: Tokenizer, ids: Sequence[int], first: int, *, after: int | None) -> Iterator[TokenText]:
    """The text of `ids`, which are in their row from index `first` on, piece by piece. Joined they are the whole text.

    A tokenizer decodes the first token of a text differently (a word's space belongs to the word). `after` is the token
    that comes before `ids`; None if a text begins with them. An id that the tokenizer lacks is its number.
    """
    before = [] if after is None else [after]
    start = 0
    while start < len(ids):
        known = list(takewhile(partial(_is_known, tokenizer), ids[start : start + _MOST_TOKENS]))
        if not known:
            yield TokenText(_number(ids[start]), first + start, 1)
            start += 1
            continue
        length, text = _shortest_whole(tokenizer, before, known)
        yield TokenText(text, first + start, length)
        # After a stray byte, a decoder would take the bytes of the next character for stray bytes too.
        if _NO_CHARACTER not in text:
            before = list(ids[start : start + length])
        start += length


def texts_of_row(tokenizer: Tokenizer, ids: list[int], eos_id: int) -> Iterator[str]:
    """The text of each token of a row. Joined they are the text of the row.

    Where several tokens make one character, the first of them has its text and the others have none. Bytes that make no
    character are replacement characters. EOS is its name in the vocabulary.
    """
    start = 0
    while start < len(ids):
        if ids[start] == eos_id:
            yield tokenizer.id_to_token(eos_id) or _number(eos_id)
            start += 1
            continue
        stop = next((place for place in range(start, len(ids)) if ids[place] == eos_id), len(ids))
        # The first token of a row may continue a text of the row before.
        for piece in pieces(tokenizer, ids[start:stop], start, after=eos_id if start == 0 else None):
            yield piece.text
            yield from [""] * (piece.tokens - 1)
        start = stop


def _number(unknown: int) -> str:
    return f"⟨id:{unknown}⟩"


def _is_known(tokenizer: Tokenizer, number: int) -> bool:
    return tokenizer.id_to_token(number) is not None


def _shortest_whole(tokenizer: Tokenizer, before: list[int], ids: Sequence[int]) -> tuple[int, str]:
    """The number of `ids` that make whole characters, and their text. One id and its replacement if not UTF-8."""
    for length in range(1, len(ids) + 1):
        text = _text_after(tokenizer, before, list(ids[:length]))
        if _NO_CHARACTER not in text:
            return length, text
    return 1, _text_after(tokenizer, before, list(ids[:1]))


def _text_after(tokenizer: Tokenizer, before: list[int], ids: list[int]) -> str:
    known, text = _text(tokenizer, before), _text(tokenizer, before + ids)
    # A decoder that cleans up spaces may change the text before. Then the tokens are decoded alone.
    return text.removeprefix(known) if text.startswith(known) else _text(tokenizer, ids)


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False))
