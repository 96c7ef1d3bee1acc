"""Text to token ids, and the fingerprints of a tokenizer."""

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

from megaslm.config.hub import hub_hint
from megaslm.errors import DataError
from megaslm.files import looked_in
from megaslm.tokenizer.folder_tokens import (
    TOKENIZER_FILE,
    apply_folder_tokens,
    require_eos,
    require_stated_ids,
    require_told_apart,
    special_id,
)

# None of these keys is a default, and they are long.
_LARGE = ("vocab", "merges")
_OF_TEXT = ("model", "normalizer", "pre_tokenizer")
_ADDED = "added_tokens"
_FLOAT32_ROUNDING = 2.0**-23


def meaning_sha256(tokenizer: Tokenizer) -> str:
    """Fingerprint of a tokenizer.json: vocabulary, merges, normaliser, pre-tokeniser and all added tokens.

    Padding, truncation, post-processor, decoder, the order of keys and the spelling of defaults do not count, so that
    saving a tokenizer again does not change it.
    """
    state = json.loads(tokenizer.to_str())
    return _sha256({key: _without_defaults(state.get(key)) for key in (*_OF_TEXT, _ADDED)})


def ids_sha256(tokenizer: Tokenizer, eos_id: int) -> str:
    """Fingerprint of the meaning of rows' ids: those of texts, and the EOS token between them.

    Two tokenizers with equal fingerprints that encode special tokens' names as text give every text equal ids. Their
    special tokens may differ; only EOS occurs in rows.
    """
    state = json.loads(tokenizer.to_str())
    meaning = {key: _without_defaults(state.get(key)) for key in _OF_TEXT}
    meaning[_ADDED] = [_without_defaults(token) for token in _that_decide_ids(state[_ADDED], tokenizer)]
    return _sha256({**meaning, "eos": tokenizer.id_to_token(eos_id), "eos_id": eos_id})


def _that_decide_ids(tokens: list[dict[str, Any]], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The added tokens that are found in text, and the special ones that can hide one of them: the library looks for
    all of them together, from left to right and for the longest, and only then skips the special ones."""
    found = [token for token in tokens if not token["special"]]
    return [
        token
        for token in tokens
        if token in found or any(_hides(token["content"], other["content"], tokenizer) for other in found)
    ]


def _hides(special: str, other: str, tokenizer: Tokenizer) -> bool:
    """Whether `special` may begin before `other`, or with it, and overlap it: as written, or as normalised."""
    normalise = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
    return any(
        other in written or any(written.endswith(other[:length]) for length in range(1, len(other)))
        for written, other in ((special, other), (normalise(special), normalise(other)))
    )


def _sha256(meaning: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meaning, sort_keys=True, ensure_ascii=False).encode("utf-8")).hexdigest()


def _without_defaults(value: object) -> object:
    """The value without null, false and empty entries, because releases differ in whether they write them."""
    if isinstance(value, dict):
        cleaned = {key: entry if key in _LARGE else _without_defaults(entry) for key, entry in value.items()}
        return {key: entry for key, entry in cleaned.items() if not (entry is None or entry is False or entry == "")}
    if isinstance(value, list):
        return [_without_defaults(entry) for entry in value]
    return value


class TextEncoder(Protocol):
    """Encodes texts without adding ids, and decodes ids."""

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The ids of each text, one-dimensional. The name of a special token in a text is encoded as text."""

    def decode(self, ids: NDArray[np.uint32]) -> str:
        """The text of ids."""


class FolderEncoder:
    """The tokenizer of a Hugging Face folder."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError where the folder has no tokenizer.json, or files that cannot be read."""
        self._tokenizer = text_tokenizer(folder)

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The ids of each text, one-dimensional. The name of a special token in a text is encoded as text.

        Raises DataError where the tokenizer has no ids for a text.
        """
        with refusing_texts():
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode(self, ids: NDArray[np.uint32]) -> str:
        """The text of ids, with special tokens as their names."""
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
        """The ids of each text, one-dimensional. The name of a control symbol in a text is encoded as text."""
        return [np.array(ids, dtype=np.uint32) for ids in self._processor.encode(list(texts))]

    def decode(self, ids: NDArray[np.uint32]) -> str:
        """The text of ids."""
        return str(self._processor.decode(ids.tolist()))

    def has_unknown(self, ids: NDArray[np.uint32]) -> bool:
        """Whether `ids` contain the unknown token, so that part of the text is lost."""
        return bool((ids == self._processor.unk_id()).any())

    def is_tie(self, ids: NDArray[np.uint32], other: NDArray[np.uint32]) -> bool:
        """Whether two segmentations of a text are equally likely to a Unigram model, at SentencePiece's precision.

        It sums a whole document in float32, so rounding decides near ties.
        """
        if not self._is_unigram:
            return False
        likelihood, other_likelihood = float(self._scores[ids].sum()), float(self._scores[other].sum())
        return abs(likelihood - other_likelihood) <= _FLOAT32_ROUNDING * abs(likelihood)


@dataclass(frozen=True)
class TokenizerFacts:
    """A dataset's record of its tokenizer."""

    vocab_size: int
    """The largest id, plus one."""
    eos_id: int
    """The token that ends a document."""
    bos_id: int | None
    """The token that may begin a document; None where the tokenizer has none."""
    sha256: str
    """See `meaning_sha256`."""
    ids_sha256: str
    """See `ids_sha256`."""


def require_tokenizer_folder(folder: Path) -> None:
    """Raises DataError where there is no such folder for the tokenizer of a recipe."""
    if not folder.is_dir():
        raise DataError(
            f"tokenizer.huggingface: {folder} is not a folder{looked_in(folder)}; a folder with tokenizer.json was "
            f"expected{hub_hint(folder, 'tokenizer')}"
        )


def tokenizer_facts(folder: Path) -> TokenizerFacts:
    """Read a Hugging Face tokenizer folder.

    Raises DataError where no EOS token in the vocabulary is named, or an added token has another id than in its file.
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
    """The `meaning_sha256` of a folder's tokenizer.json."""
    return meaning_sha256(load_tokenizer(folder))


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer.json of a folder, without random elements.

    Raises DataError where the file does not exist or cannot be read.
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
        # Dropout is for training models on several segmentations of a text.
        tokenizer.model.dropout = None
    return tokenizer


def text_tokenizer(folder: Path, eos_id: int | None = None) -> Tokenizer:
    """The tokenizer of a folder, set up to encode texts: by all files of the folder, without additions and truncation,
    and with special tokens' names as text. `eos_id` is the token that ends documents, which may differ from the
    folder's own.

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
    """Turns the library's errors about a text into DataError."""
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
    """Whether `tokenizers` raised it: a plain Exception or, where Rust panics, a plain BaseException."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
