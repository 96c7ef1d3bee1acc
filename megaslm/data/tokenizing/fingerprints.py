"""What tokenizers are told apart by."""

import hashlib
import json
from typing import Any

from tokenizers import Tokenizer

# Nothing in these is a default, and there is much of it.
_LARGE = ("vocab", "merges")
_OF_TEXT = ("model", "normalizer", "pre_tokenizer")
_ADDED = "added_tokens"


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
