"""A faster encoder for BPE tokenizers: texts are cut where no merge can span, and known stretches are looked up.

Byte-pair encoding only merges two neighbours. Where no merge of the vocabulary has a left side that ends in one
character and a right side that begins with the next, nothing is ever joined across the two. So both sides can be
encoded separately. Tokenizers of the Llama-2 family treat a whole document as one word, which costs much time and
memory. Cut this way, it falls into short stretches, most of which have occurred before.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models

from megaslm.tokenizer.tokenizer import FolderEncoder, TextEncoder, load_tokenizer, refusing_texts, text_tokenizer

_SPACE = "▁"
_BYTE_PIECE = re.compile("<0x[0-9A-Fa-f]{2}>")
_BLOCK_CHARACTERS = 2**16
_REMEMBERED_STRETCHES = 2**18
_LONGEST_REMEMBERED = 64
# Classes of characters: one for all that the vocabulary lacks, one for all rare ones, one for each of the others.
_LACKING, _RARE, _FIRST_OF_OTHERS = 0, 1, 2
_MOST_CLASSES = 4096


def fastest_encoder(folder: Path) -> TextEncoder:
    """An encoder for a tokenizer's folder: stretch by stretch where that gives the same ids, else the library's."""
    tokenizer = text_tokenizer(folder)
    bpe = _bpe_of_whole_texts(tokenizer)
    return FolderEncoder(folder) if bpe is None else WordEncoder(folder, bpe)


@dataclass(frozen=True)
class _WholeTextBPE:
    """A tokenizer that only marks spaces, may add one at the front, and merges."""

    vocabulary: dict[str, int]
    merges: list[tuple[str, str]]
    prefix: str
    """Added at the front of every text."""
    prefix_unless_there: bool
    """Whether texts that already begin with the prefix get no second one."""


class WordEncoder:
    """Encodes stretch by stretch, with a cache."""

    def __init__(self, folder: Path, bpe: _WholeTextBPE) -> None:
        self._whole = FolderEncoder(folder)
        self._bpe = bpe
        self._class_of, self._joins = _classes(bpe)
        self._ids_of = _Remembered(load_tokenizer(folder).model)

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The ids of each text, one-dimensional. The name of a special token in a text is encoded as text.

        Raises DataError where the tokenizer has no ids for a text.
        """
        with refusing_texts():
            return [self._encode(text) for text in texts]

    def decode(self, ids: NDArray[np.uint32]) -> str:
        """The text of ids, with special tokens as their names."""
        return self._whole.decode(ids)

    def _encode(self, text: str) -> NDArray[np.uint32]:
        pieces = [
            b"".join(map(self._ids_of.__getitem__, stretches)) for stretches in self._stretches(self._marked(text))
        ]
        return np.frombuffer(b"".join(pieces), dtype=np.uint32)

    def _marked(self, text: str) -> str:
        marked = text.replace(" ", _SPACE)
        has_prefix = self._bpe.prefix_unless_there and marked.startswith(self._bpe.prefix)
        return marked if not marked or has_prefix else self._bpe.prefix + marked

    def _stretches(self, text: str) -> Iterator[list[str]]:
        """The stretches between cuts, in order, in lists of bounded size."""
        rest = ""
        for start in range(0, len(text), _BLOCK_CHARACTERS):
            block = rest + text[start : start + _BLOCK_CHARACTERS]
            bounds = [0, *self._cuts(block)]
            yield [block[begin:end] for begin, end in pairwise(bounds)]
            rest = block[bounds[-1] :]
        if rest:
            yield [rest]

    def _cuts(self, text: str) -> list[int]:
        classes = self._class_of[np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)]
        return (np.flatnonzero(~self._joins[classes[:-1], classes[1:]]) + 1).tolist()


class _Remembered(dict[str, bytes]):
    """Ids by stretch, as bytes of uint32. Emptied when it has grown large."""

    def __init__(self, model: models.BPE) -> None:
        super().__init__()
        self._model = model

    def __missing__(self, stretch: str) -> bytes:
        ids = np.array([token.id for token in self._model.tokenize(stretch)], dtype=np.uint32).tobytes()
        if len(stretch) <= _LONGEST_REMEMBERED:
            if len(self) >= _REMEMBERED_STRETCHES:
                self.clear()
            self[stretch] = ids
        return ids


def _classes(bpe: _WholeTextBPE) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """The class of each Unicode character, (0x110000,); whether a merge may join two classes, (classes, classes)."""
    joints = [(left[-1], right[0]) for left, right in bpe.merges]
    by_use = Counter(character for joint in joints for character in joint)
    told_apart = [character for character, _ in by_use.most_common(_MOST_CLASSES - _FIRST_OF_OTHERS)]
    class_of = np.full(0x110000, _LACKING, dtype=np.uint16)
    class_of[[ord(piece) for piece in bpe.vocabulary if len(piece) == 1]] = _RARE
    for number, character in enumerate(told_apart, start=_FIRST_OF_OTHERS):
        class_of[ord(character)] = number
    joins = np.zeros((_FIRST_OF_OTHERS + len(told_apart),) * 2, dtype=np.bool_)
    # Neighbouring characters that the vocabulary lacks may become one unknown token.
    joins[_LACKING, _LACKING] = True
    for left, right in joints:
        joins[class_of[ord(left)], class_of[ord(right)]] = True
    return class_of, joins


def _bpe_of_whole_texts(tokenizer: Tokenizer) -> _WholeTextBPE | None:
    """A description of the tokenizer, where cuts are known not to change its ids; None otherwise."""
    state = json.loads(tokenizer.to_str())
    model, prefix = state["model"], _prefix(state["normalizer"], state["pre_tokenizer"])
    if model["type"] != "BPE" or prefix is None or not all(token["special"] for token in state["added_tokens"]):
        return None
    if any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")):
        return None
    merges = [(left, right) for left, right in model["merges"]]
    if any(_BYTE_PIECE.fullmatch(side) for merge in merges for side in merge):
        return None
    return _WholeTextBPE(model["vocab"], merges, *prefix)


def _prefix(normalizer: dict[str, object] | None, pre_tokenizer: dict[str, object] | None) -> tuple[str, bool] | None:
    """The prefix of texts, and whether it is added only where missing; None where the tokenizer does more than that."""
    mark = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepend = {"type": "Prepend", "prepend": _SPACE}
    if pre_tokenizer is None:
        steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
        if steps == [mark]:
            return "", False
        return (_SPACE, False) if steps == [prepend, mark] else None
    whole = {"type": "Metaspace", "replacement": _SPACE, "split": False}
    schemes = {"never": "", "first": _SPACE, "always": _SPACE}
    if normalizer is None and {**pre_tokenizer, **whole} == pre_tokenizer:
        return schemes[str(pre_tokenizer["prepend_scheme"])], True
    return None
