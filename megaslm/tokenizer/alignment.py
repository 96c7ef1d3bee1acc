"""Values of one tokenisation of a text, carried over to the tokens of another."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megaslm.tokenizer.token_places import PlacedTokens, PlacingEncoder
from megaslm.tokenizer.token_text import pieces
from megaslm.tokenizer.tokenizer import text_tokenizer

# The first code points whose UTF-8 has two, three and four bytes.
_WIDER_FROM = (0x80, 0x800, 0x10000)
# In place of zero bytes, so that a share of them can be told.
_NO_BYTES = 1e-9


class PlacedText(NamedTuple):
    """A text, and where the tokens that it was made of begin."""

    text: str
    begins: NDArray[np.int64]
    """(tokens,), see `begins_of`."""


class TokensInText:
    """Makes the text of tokens, and finds their places in it."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError where the folder's tokenizer cannot be read."""
        self._tokenizer = text_tokenizer(folder)
        self._encoder = PlacingEncoder(folder)

    def placed(self, ids: NDArray[np.integer]) -> PlacedText:
        """The text of a document's tokens, (tokens,), and their places."""
        known: Sequence[int] = ids.tolist()
        decoded = str(self._tokenizer.decode(known, skip_special_tokens=False))
        # Some tokenizers put a space before a text, and do not remove it when they decode.
        for text in dict.fromkeys((decoded, decoded.removeprefix(" "))):
            again = self._encoder.encode(text)
            if np.array_equal(again.ids, ids):
                return PlacedText(text, begins_of(again))
        # The text gives other ids: it was encoded otherwise, or names special tokens. Each token tells its own text.
        found = list(pieces(self._tokenizer, known, 0, after=None))
        lengths = [len(piece.text) for piece in found]
        firsts = np.cumsum([0, *lengths[:-1]], dtype=np.int64)
        return PlacedText("".join(piece.text for piece in found), firsts.repeat([piece.tokens for piece in found]))


def byte_offsets(text: str) -> NDArray[np.int64]:
    """The byte of the text's UTF-8 at which each character begins, then the number of bytes: (characters + 1,)."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    widths = 1 + sum((points >= first).astype(np.int64) for first in _WIDER_FROM)
    return np.concatenate([[0], np.cumsum(widths, dtype=np.int64)])


def begins_of(tokens: PlacedTokens) -> NDArray[np.int64]:
    """The character at which each token begins, (tokens,). What stands between two tokens belongs to the second one."""
    begins = tokens.starts.copy()
    begins[:1] = 0
    np.minimum(begins[1:], tokens.stops[:-1], out=begins[1:], where=tokens.stops[:-1] > begins[:-1])
    return begins


def carried_over(
    values: NDArray[np.floating], begins: NDArray[np.int64], to_begins: NDArray[np.int64], offsets: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Values of tokens as values of the tokens of another tokenisation, with the same sum.

    Places where a token begins in both tokenisations divide the text into stretches. The values of a stretch are added
    up, and shared among the other tokens of the stretch in proportion to their bytes. So a token that is the same in
    both tokenisations keeps its value. Tokens that begin at one character have equal shares of its bytes.

    Args:
        values: (columns, tokens).
        begins: (tokens,), the characters at which these begin, in ascending order from 0 on.
        to_begins: (others,), those of the other tokens.
        offsets: see `byte_offsets`.

    Returns:
        (columns, others) float64.
    """
    both = np.intersect1d(begins, to_begins)
    sums = np.add.reduceat(values.astype(np.float64), np.searchsorted(begins, both), axis=1)
    stretch = np.searchsorted(both, to_begins, side="right") - 1
    places, tokens = np.unique(to_begins, return_counts=True)
    # A token without text may be alone in its stretch.
    bytes_of = np.maximum(np.diff(offsets[np.append(places, len(offsets) - 1)]), _NO_BYTES)
    share = np.repeat(bytes_of / tokens, tokens)
    share /= np.bincount(stretch, weights=share)[stretch]
    return np.asarray(sums[:, stretch] * share)
