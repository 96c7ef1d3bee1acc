"""Text to token ids, and what a tokenizer is known by."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import Tokenizer, models

from megaslm.errors import DataError
from megaslm.tokenizer.folder_tokens import (
    TOKENIZER_FILE,
    apply_folder_tokens,
    require_eos,
    require_stated_ids,
    require_told_apart,
    special_id,
)

# Nothing in these is a default, and there is much of it.
_LARGE = ("vocab", "merges")
_OF_TEXT = ("model", "normalizer", "pre_tokenizer")
_ADDED = "added_tokens"
_FLOAT32_ROUNDING = 2.0**-23


def meaning_sha256(tokenizer: Tokenizer) -> str:
    """Fingerprint of a tokenizer.json: vocabulary, merges, normaliser, pre-tokeniser and all added tokens.

    Padding, truncation, post-processor, decoder, order of keys and ways of writing a default do not count, so that
    saving a tokenizer again does not change it.
    """
    state = json.loads(tokenizer.to_str())
    return _sha256({key: _without_defaults(state.get(key)) for key in (*_OF_TEXT, _ADDED)})


def ids_sha256(tokenizer: Tokenizer, eos_id: int) -> str:
    """Fingerprint of what the ids of rows mean: those that texts give, and the EOS token between them.

    Of two tokenizers that encode special tokens' names as text, with an equal one, every text has equal ids. Their
    special tokens may be others; EOS alone comes to stand in rows.
    """
    state = json.loads(tokenizer.to_str())
    meaning = {key: _without_defaults(state.get(key)) for key in _OF_TEXT}
    meaning[_ADDED] = [_without_defaults(token) for token in _that_decide_ids(state[_ADDED], tokenizer)]
    return _sha256({**meaning, "eos": tokenizer.id_to_token(eos_id), "eos_id": eos_id})


def _that_decide_ids(tokens: list[dict[str, Any]], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The added tokens that are found in text, and the special ones that keep one from being found: the library looks
    for all of them together, from left to right and for the longest, and only then passes over the special ones."""
    found = [token for token in tokens if not token["special"]]
    return [
        token
        for token in tokens
        if token in found or any(_hides(token["content"], other["content"], tokenizer) for other in found)
    ]


def _hides(special: str, other: str, tokenizer: Tokenizer) -> bool:
    """Whether the one may begin before the other, or with it, and reach into it: as written, or as normalised."""
    normalise = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
    return any(
        other in written or any(written.endswith(other[:length]) for length in range(1, len(other)))
        for written, other in ((special, other), (normalise(special), normalise(other)))
    )


def _sha256(meaning: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meaning, sort_keys=True, ensure_ascii=False).encode("utf-8")).hexdigest()


def _without_defaults(value: object) -> object:
    """The same value without what is null, false or empty: releases differ in whether they write it."""
    if isinstance(value, dict):
        cleaned = {key: entry if key in _LARGE else _without_defaults(entry) for key, entry in value.items()}
        return {key: entry for key, entry in cleaned.items() if not (entry is None or entry is False or entry == "")}
    if isinstance(value, list):
        return [_without_defaults(entry) for entry in value]
    return value


class TextEncoder(Protocol):
    """What turns texts into ids without adding any, and ids back into text."""

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The ids of each text, one-dimensional; a special token's name in a text is text."""

    def decode(self, ids: NDArray[np.uint32]) -> str:
        """The text of ids."""


class FolderEncoder:
    """The tokenizer of a Hugging Face folder."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError where the folder has no tokenizer.json, or files that cannot be read."""
        self._tokenizer = text_tokenizer(folder)

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The ids of each text, one-dimensional; a special token's name in a text is text.

        Raises DataError where the tokenizer has none for a text.
        """
        with refusing_texts():
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode(self, ids: NDArray[np.uint32]) -> str:
        """The text of ids, special tokens by their names."""
        return str(self._tokenizer.decode(ids.tolist(), skip_special_tokens=False))


class SentencePieceEncoder:
    """A SentencePiece model."""

    def __init__(self, model: bytes) -> None:
        """`model` is the content of a model file. Raises DataError where it is not one."""
        try:
            self._processor = SentencePieceProcessor(model_proto=model)
            description = sentencepiece_model_pb2.ModelProto.FromString(model)
        except RuntimeError as error:
            raise DataError(f"not a SentencePiece model: {error}") from error
        self._is_unigram = description.trainer_spec.model_type == description.trainer_spec.UNIGRAM
        self._scores = np.array([piece.score for piece in description.pieces])

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The ids of each text, one-dimensional; a control symbol's name in a text is text."""
        return [np.array(ids, dtype=np.uint32) for ids in self._processor.encode(list(texts))]

    def decode(self, ids: NDArray[np.uint32]) -> str:
        """The text of ids."""
        return str(self._processor.decode(ids.tolist()))

    def has_unknown(self, ids: NDArray[np.uint32]) -> bool:
        """Whether part of the text is lost in `ids`."""
        return bool((ids == self._processor.unk_id()).any())

    def is_tie(self, ids: NDArray[np.uint32], other: NDArray[np.uint32]) -> bool:
        """Whether two ways to cut a text are equally likely to a Unigram model, as far as SentencePiece can tell.

        It adds up a whole document in float32 and so decides near ties by rounding.
        """
        if not self._is_unigram:
            return False
        likelihood, other_likelihood = float(self._scores[ids].sum()), float(self._scores[other].sum())
        return abs(likelihood - other_likelihood) <= _FLOAT32_ROUNDING * abs(likelihood)


@dataclass(frozen=True)
class TokenizerFacts:
    """What a dataset says about its tokenizer."""

    vocab_size: int
    """One more than the largest id."""
    eos_id: int
    """The token that ends a document."""
    bos_id: int | None
    """The token that may begin one; null where the tokenizer has none."""
    sha256: str
    """Fingerprint of its meaning; `fingerprints.meaning_sha256`."""
    ids_sha256: str
    """Fingerprint of what a row's ids mean; `fingerprints.ids_sha256`."""


def tokenizer_facts(folder: Path) -> TokenizerFacts:
    """Read a Hugging Face tokenizer folder.

    Raises DataError where it names no EOS token that the vocabulary holds, or an added token has another id than its
    file says.
    """
    tokenizer = load_tokenizer(folder)
    require_stated_ids(folder, tokenizer)
    eos_id = require_eos(folder, tokenizer)
    return TokenizerFacts(
        vocab_size=1 + max(tokenizer.get_vocab(with_added_tokens=True).values()),
        eos_id=eos_id,
        bos_id=special_id(folder, tokenizer, "bos"),
        sha256=meaning_sha256(tokenizer),
        ids_sha256=ids_sha256(text_tokenizer(folder, eos_id), eos_id),
    )


def tokenizer_sha256(folder: Path) -> str:
    """Fingerprint of a folder's tokenizer.json; `fingerprints.meaning_sha256`."""
    return meaning_sha256(load_tokenizer(folder))


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer.json of a folder, nothing in it left to chance.

    Raises DataError where there is none, or one that cannot be read.
    """
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise DataError(
            f"{folder}: no {TOKENIZER_FILE}; where the folder has a SentencePiece model (tokenizer.model), "
            "name that file as `tokenizer.sentencepiece` in the recipe"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except BaseException as error:
        if not _is_of_library(error):
            raise
        raise DataError(
            f"{path} is not a tokenizer that this version of `tokenizers` reads: {error}; copy the file again, or save "
            "it with this version"
        ) from error
    if isinstance(tokenizer.model, models.BPE):
        # Dropout is for training models on many ways to cut one text.
        tokenizer.model.dropout = None
    return tokenizer


def text_tokenizer(folder: Path, eos_id: int | None = None) -> Tokenizer:
    """The tokenizer of a folder as it is to encode texts: by all its files, adding nothing, cutting nothing off, with
    special tokens' names taken for text. `eos_id` is the token that ends documents, where the folder's need not be it.

    Raises DataError as `load_tokenizer`, and where the folder's files contradict one another.
    """
    tokenizer = load_tokenizer(folder)
    apply_folder_tokens(folder, tokenizer, special_id(folder, tokenizer, "eos") if eos_id is None else eos_id)
    require_told_apart(folder, tokenizer)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


@contextmanager
def refusing_texts() -> Iterator[None]:
    """Turns what the library raises over a text into DataError."""
    try:
        yield
    except BaseException as error:
        if not _is_of_library(error):
            raise
        raise DataError(
            f"`tokenizers` cannot encode the text: {error}; give the tokenizer an unknown token that its vocabulary "
            "holds, or leave such documents out with a filter"
        ) from error


def _is_of_library(error: BaseException) -> bool:
    """Whether `tokenizers` raised it: nothing narrower than Exception or, where Rust panics, than BaseException."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
