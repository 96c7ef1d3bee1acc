"""Text to token ids, and what a tokenizer is known by."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import Tokenizer

from megaslm.errors import DataError

TOKENIZER_FILE = "tokenizer.json"
_CONFIG_FILES = ("tokenizer_config.json", "special_tokens_map.json")
_MODEL_CONFIG_FILES = ("config.json", "generation_config.json")
_FLOAT32_ROUNDING = 2.0**-23
# Nothing in these is a default, and there is much of it.
_LARGE = ("vocab", "merges")
_MEANING = ("model", "normalizer", "pre_tokenizer", "added_tokens")


class TextEncoder(Protocol):
    """What turns texts into ids without adding any, and ids back into text."""

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The ids of each text, one-dimensional; a special token's name in a text is text."""

    def decode(self, ids: NDArray[np.uint32]) -> str:
        """The text of ids."""


class FolderEncoder:
    """The tokenizer.json of a Hugging Face folder."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError where the folder has no tokenizer.json, or one that cannot be read."""
        self._tokenizer = load_tokenizer(folder)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The ids of each text, one-dimensional; a special token's name in a text is text."""
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
        except RuntimeError as error:
            raise DataError(f"not a SentencePiece model: {error}") from error
        description = sentencepiece_model_pb2.ModelProto.FromString(model)
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
    """Fingerprint of its meaning."""


def tokenizer_facts(folder: Path) -> TokenizerFacts:
    """Read a Hugging Face tokenizer folder. Raises DataError where it names no EOS token that the vocabulary holds."""
    tokenizer = load_tokenizer(folder)
    eos_id = _special_id(folder, tokenizer, "eos")
    if eos_id is None:
        searched = ", ".join((*_CONFIG_FILES, *_MODEL_CONFIG_FILES))
        raise DataError(
            f"{folder}: no EOS token in {searched}; documents cannot be separated without one: "
            'add "eos_token" to tokenizer_config.json'
        )
    return TokenizerFacts(
        vocab_size=1 + max(tokenizer.get_vocab(with_added_tokens=True).values()),
        eos_id=eos_id,
        bos_id=_special_id(folder, tokenizer, "bos"),
        sha256=tokenizer_sha256(folder),
    )


def tokenizer_sha256(folder: Path) -> str:
    """Fingerprint of what decides a text's ids: vocabulary, merges, normaliser, pre-tokeniser and added tokens.

    Padding, truncation, post-processor, decoder, order of keys and ways of writing a default do not count, so that
    saving a tokenizer again does not change it.
    """
    state = json.loads(load_tokenizer(folder).to_str())
    meaning = {key: _without_defaults(state.get(key)) for key in _MEANING}
    return hashlib.sha256(json.dumps(meaning, sort_keys=True, ensure_ascii=False).encode("utf-8")).hexdigest()


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer.json of a folder. Raises DataError where there is none, or one that cannot be read."""
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise DataError(
            f"{folder}: no {TOKENIZER_FILE}; where the folder has a SentencePiece model (tokenizer.model), "
            "name that file as `tokenizer.sentencepiece` in the recipe"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"{path} is not a tokenizer that this version of `tokenizers` reads: {error}") from error


def _special_id(folder: Path, tokenizer: Tokenizer, kind: str) -> int | None:
    for file in _CONFIG_FILES:
        name = _token_name(_read_json(folder / file).get(f"{kind}_token"))
        if name is not None:
            found = tokenizer.token_to_id(name)
            if found is None:
                raise DataError(f"{folder / file}: {kind}_token {name!r} is not in the vocabulary of {TOKENIZER_FILE}")
            return int(found)
    for file in _MODEL_CONFIG_FILES:
        value = _read_json(folder / file).get(f"{kind}_token_id")
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, int):
            return first
    return None


def _token_name(value: object) -> str | None:
    """A special token is written as its name, or as an object that has it as `content`."""
    name = value.get("content") if isinstance(value, dict) else value
    return name if isinstance(name, str) else None


def _read_json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def _without_defaults(value: object) -> object:
    """The same value without what is null, false or empty: releases differ in whether they write it."""
    if isinstance(value, dict):
        cleaned = {key: entry if key in _LARGE else _without_defaults(entry) for key, entry in value.items()}
        return {key: entry for key, entry in cleaned.items() if not (entry is None or entry is False or entry == "")}
    if isinstance(value, list):
        return [_without_defaults(entry) for entry in value]
    return value
