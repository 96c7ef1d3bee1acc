"""Text to token ids, and what a tokenizer is known by."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import Tokenizer, models

from megaslm.data.tokenizing.fingerprints import ids_sha256, meaning_sha256
from megaslm.data.tokenizing.folder_tokens import (
    TOKENIZER_FILE,
    apply_folder_tokens,
    require_eos,
    require_stated_ids,
    require_told_apart,
    special_id,
)
from megaslm.errors import DataError

_FLOAT32_ROUNDING = 2.0**-23


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
