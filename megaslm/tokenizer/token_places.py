"""Token ids together with their places in the text."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megaslm.tokenizer.tokenizer import refusing_texts, text_tokenizer


class PlacedTokens(NamedTuple):
    """The tokens of a text."""

    ids: NDArray[np.uint32]
    """(tokens,)"""
    starts: NDArray[np.int64]
    """(tokens,), the index of the character at which each token begins. The tokens that spell the bytes of one
    character all begin at it."""
    stops: NDArray[np.int64]
    """(tokens,), the index after its last character. Some tokenizers leave out the spaces between tokens."""


class PlacingEncoder:
    """A tokenizer's folder as an encoder that also tells the places of tokens."""

    def __init__(self, folder: Path, *, special_tokens: bool = False) -> None:
        """With `special_tokens` the name of a special token in a text gives that token, otherwise it is encoded as
        text, as in other documents. Raises DataError where the folder's files cannot be read."""
        self._tokenizer = text_tokenizer(folder)
        self._tokenizer.encode_special_tokens = not special_tokens
        # A post-processor may move the start of a token behind its space.
        self._tokenizer.post_processor = None
        self.special_names = tuple(
            token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special
        )
        """The names of the special tokens."""

    def encode(self, text: str) -> PlacedTokens:
        """The tokens of a text, encoded as a whole. Raises DataError where the tokenizer has no ids for it."""
        with refusing_texts():
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        places = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        return PlacedTokens(np.array(encoding.ids, dtype=np.uint32), places[:, 0], places[:, 1])
