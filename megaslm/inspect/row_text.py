"""One row of a dataset as documents, each token's text, and losses."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from megaslm.config.schema import Split
from megaslm.dataset.index import in_order
from megaslm.dataset.manifest import TOKENIZER, Manifest, Part, read_manifest
from megaslm.dataset.rows import RowReader, unpack_mask
from megaslm.errors import DataError
from megaslm.slm.valid_targets import valid_targets
from megaslm.tokenizer.tokenizer import load_tokenizer

_NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"
_MOST_TOKENS = 16
"""Tokens that are tried together: a character has up to 4 bytes, and a token may hold bytes of two characters."""


@dataclass(frozen=True)
class TokenText:
    """Tokens that make whole characters together: one, or as many as share a character's bytes."""

    text: str
    """Their text; bytes that are no UTF-8 are replacement characters."""
    first: int
    """The place of the first token in its row."""
    tokens: int
    """How many they are."""


def pieces(tokenizer: Tokenizer, ids: Sequence[int], first: int, *, after: int | None) -> Iterator[TokenText]:
    """The text of `ids`, which stand in their row from `first` on, piece by piece; joined they are the whole text.

    A tokenizer decodes a token otherwise at the beginning of a text than within it (a word's space belongs to the
    word). `after` is a token to be taken as standing before `ids`; null where a text begins with them.
    """
    before = [] if after is None else [after]
    start = 0
    while start < len(ids):
        length, text = _shortest_whole(tokenizer, before, ids[start : start + _MOST_TOKENS])
        yield TokenText(text, first + start, length)
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


@dataclass(frozen=True)
class RowPlace:
    """Where a row is."""

    split: Split
    domain: str
    row: int
    """Its number in the domain."""
    rows: int
    """How many the domain has."""
    part: str
    """The part that holds it."""
    row_of_part: int
    """Its number there."""


@dataclass(frozen=True)
class RowDocument:
    """What a row holds of one document, without the EOS that ends it."""

    begins: bool
    """Whether it begins in this row."""
    ends: bool
    """Whether it ends in this row."""
    start: int
    """The place of its first token in the row."""
    stop: int
    """The place after its last: where it ends, that of its EOS."""
    pieces: tuple[TokenText, ...]
    """Its text."""


@dataclass(frozen=True)
class RowText:
    """A row of seq_len + 1 tokens."""

    place: RowPlace
    tokens: tuple[int, ...]
    """Their ids."""
    documents: tuple[RowDocument, ...]
    """What it holds, in order; each that ends does so with EOS."""
    padding_tokens: int
    """How many EOS fill its end."""
    eos: str
    """The name of the EOS token."""
    ref_loss: tuple[float | None, ...] | None
    """For each token the reference's loss in nats; null where it is no target. Null where the dataset has none."""
    ref_entropy: tuple[float | None, ...] | None
    """Likewise the entropy of the reference's prediction."""
    selected: tuple[bool, ...] | None
    """For each token whether it is a target that the dataset's mask selects. Null where it has no mask."""


def read_row(dataset: Path, split: Split, row: int, domain: str | None = None) -> RowText:
    """A row of `split`, as text.

    Rows are counted over the domains of the split in the manifest's order, as training numbers them; with `domain`
    over that domain alone.

    Raises DataError where there is no such dataset, split, domain or row.
    """
    manifest = read_manifest(dataset)
    place = _place(dataset, manifest, split, row, domain)
    columns = RowReader(dataset, split, place.domain, place.part)
    read = columns[place.row_of_part]
    before = columns[place.row_of_part - 1]["tokens"] if place.row_of_part > 0 else None
    tokens = read["tokens"].astype(np.int64)
    # The first token is the last of the row before, and begins a document where the one before that ended one.
    begins = before is None or bool(before[-2] == manifest.eos_id)
    padding = _padding(tokens, manifest.eos_id)
    tokenizer = load_tokenizer(dataset / TOKENIZER)
    documents = []
    for start, stop, ends in _documents(tokens[: len(tokens) - padding], manifest.eos_id):
        whole = begins or start > 0
        text = pieces(tokenizer, tokens[start:stop].tolist(), start, after=None if whole else manifest.eos_id)
        documents.append(RowDocument(begins=whole, ends=ends, start=start, stop=stop, pieces=tuple(text)))
    return RowText(
        place=place,
        tokens=tuple(tokens.tolist()),
        documents=tuple(documents),
        padding_tokens=padding,
        eos=str(tokenizer.id_to_token(manifest.eos_id)),
        ref_loss=_of_tokens(read.get("ref_loss"), tokens, manifest.eos_id),
        ref_entropy=_of_tokens(read.get("ref_entropy"), tokens, manifest.eos_id),
        selected=_selected(read.get("selected"), len(tokens) - 1),
    )


def _place(dataset: Path, manifest: Manifest, split: Split, row: int, domain: str | None) -> RowPlace:
    domains = manifest.splits.get(split, {})
    if not domains:
        raise DataError(f"{dataset} has no split {split}; it has {', '.join(manifest.splits)}")
    if domain is not None and domain not in domains:
        raise DataError(f"{dataset} has no domain {domain} in split {split}; it has {', '.join(domains)}")
    looked_at = domains if domain is None else {domain: domains[domain]}
    rows = sum(share.rows for share in looked_at.values())
    if not 0 <= row < rows:
        where = split if domain is None else f"{split}/{domain}"
        raise DataError(f"{dataset} has no row {row} in {where}; its rows are 0 to {rows - 1}")
    for name, share in looked_at.items():
        if row < share.rows:
            part, row_of_part = _part_of(in_order(dataset / split / name, share.parts), row)
            return RowPlace(split, name, row, share.rows, part.name, row_of_part)
        row -= share.rows
    raise AssertionError("a row below the sum of the domains' rows lies in one of them")


def _part_of(parts: list[Part], row: int) -> tuple[Part, int]:
    for part in parts:
        if row < part.rows:
            return part, row
        row -= part.rows
    raise AssertionError("a row below the sum of the parts' rows lies in one of them")


def _padding(tokens: NDArray[np.int64], eos_id: int) -> int:
    """How many EOS at the end of a row follow the one that ends its last document."""
    others = np.flatnonzero(tokens != eos_id)
    trailing = len(tokens) - 1 - int(others[-1]) if len(others) else len(tokens)
    return max(0, trailing - 1)


def _documents(tokens: NDArray[np.int64], eos_id: int) -> Iterator[tuple[int, int, bool]]:
    """Where each document starts and stops (its EOS excluded), and whether an EOS follows."""
    start = 0
    for stop in np.flatnonzero(tokens == eos_id).tolist():
        yield start, stop, True
        start = stop + 1
    if start < len(tokens):
        yield start, len(tokens), False


def _of_tokens(
    values: NDArray[np.generic] | None, tokens: NDArray[np.int64], eos_id: int
) -> tuple[float | None, ...] | None:
    """What is known of each token as a target: nothing of the first, and of one that follows EOS."""
    if values is None:
        return None
    valid = valid_targets(tokens, eos_id).tolist()
    of_targets = zip(cast(NDArray[np.float16], values).tolist(), valid, strict=True)
    return (None, *(value if is_valid else None for value, is_valid in of_targets))


def _selected(bits: NDArray[np.generic] | None, targets: int) -> tuple[bool, ...] | None:
    """The bits of each token as a target; the first is none."""
    if bits is None:
        return None
    return (False, *unpack_mask(cast(NDArray[np.uint8], bits)[None], targets)[0].tolist())
