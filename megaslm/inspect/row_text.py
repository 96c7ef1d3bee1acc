"""A row of a dataset as documents, with each token's text and losses."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from megaslm.config.section import Split
from megaslm.dataset.index import in_order
from megaslm.dataset.manifest import TOKENIZER, Manifest, Part, read_manifest
from megaslm.dataset.rows import RowReader, unpack_mask
from megaslm.errors import DataError
from megaslm.slm.valid_targets import valid_targets
from megaslm.tokenizer.token_text import TokenText, pieces
from megaslm.tokenizer.tokenizer import load_tokenizer


@dataclass(frozen=True)
class RowPlace:
    """The place of a row."""

    split: Split
    domain: str
    row: int
    """Its number in the domain."""
    rows: int
    """The number of rows in the domain."""
    part: str
    """The part that holds it."""
    row_of_part: int
    """Its number in the part."""


@dataclass(frozen=True)
class RowDocument:
    """The part of one document in a row, without the BOS before it and the EOS that ends it."""

    begins: bool
    """Whether it begins in this row."""
    ends: bool
    """Whether it ends in this row."""
    bos: int | None
    """The index of the BOS before it; None if it has none here."""
    start: int
    """The index of its first token in the row."""
    stop: int
    """The index after its last token: the index of its EOS if it ends here."""
    pieces: tuple[TokenText, ...]


@dataclass(frozen=True)
class RowText:
    """A row of seq_len + 1 tokens."""

    place: RowPlace
    tokens: tuple[int, ...]
    """Their ids."""
    documents: tuple[RowDocument, ...]
    """Its documents, in order. A document that ends in the row ends with EOS."""
    padding_tokens: int
    """The number of EOS tokens that fill its end."""
    bos: str
    """The name of the BOS token; empty if rows have none."""
    eos: str
    """The name of the EOS token."""
    ref_loss: tuple[float | None, ...] | None
    """The reference's loss of each token, in nats; None for a token that is not a target. None without losses."""
    ref_entropy: tuple[float | None, ...] | None
    """The entropy of the reference's prediction, likewise."""
    trained: tuple[bool, ...] | None
    """For each token whether it is a target that the dataset's target mask leaves. None if it has no target mask."""
    selected: tuple[bool, ...] | None
    """For each token whether it is a target that the dataset's mask selects. None if the dataset has no mask."""
    weight: tuple[float | None, ...] | None
    """The weight of each token, as `ref_loss`. None if the dataset has no weights."""


def read_row(dataset: Path, split: Split, row: int, domain: str | None = None) -> RowText:
    """A row of `split`, as text.

    Rows are counted over the domains of the split in the manifest's order, as in training. With `domain` they are
    counted within that domain.

    Raises DataError where there is no such dataset, split, domain or row.
    """
    manifest = read_manifest(dataset)
    place = _place(dataset, manifest, split, row, domain)
    columns = RowReader(dataset, split, place.domain, place.part)
    read = columns[place.row_of_part]
    before = columns[place.row_of_part - 1]["tokens"] if place.row_of_part > 0 else None
    tokens = read["tokens"].astype(np.int64)
    # The first token is the last of the previous row, or a BOS. It begins a document if an EOS comes before it there.
    begins = before is None or bool(before[-1 - manifest.packing.overlap_tokens] == manifest.eos_id)
    padding = padding_of(tokens, manifest.eos_id)
    valid = valid_targets(tokens, manifest.eos_id, read.get("target_mask")).tolist()
    tokenizer = load_tokenizer(dataset / TOKENIZER)
    documents = []
    for first, stop, ends in _documents(tokens[: len(tokens) - padding], manifest.eos_id):
        whole = begins or first > 0
        bos = first if tokens[first] == manifest.bos_in_rows else None
        start = first if bos is None else first + 1
        text = pieces(tokenizer, tokens[start:stop].tolist(), start, after=None if whole else manifest.eos_id)
        documents.append(RowDocument(begins=whole, ends=ends, bos=bos, start=start, stop=stop, pieces=tuple(text)))
    return RowText(
        place=place,
        tokens=tuple(tokens.tolist()),
        documents=tuple(documents),
        padding_tokens=padding,
        bos="" if manifest.bos_in_rows is None else str(tokenizer.id_to_token(manifest.bos_in_rows)),
        eos=str(tokenizer.id_to_token(manifest.eos_id)),
        ref_loss=_of_tokens(read.get("ref_loss"), valid),
        ref_entropy=_of_tokens(read.get("ref_entropy"), valid),
        trained=(False, *valid) if manifest.target_mask else None,
        selected=_selected(read.get("selected"), len(tokens) - 1),
        weight=_of_tokens(read.get("weight"), valid),
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


def padding_of(tokens: NDArray[np.int64], eos_id: int) -> int:
    """The number of EOS tokens at the end of a row after the one that ends its last document."""
    others = np.flatnonzero(tokens != eos_id)
    trailing = len(tokens) - 1 - int(others[-1]) if len(others) else len(tokens)
    return max(0, trailing - 1)


def _documents(tokens: NDArray[np.int64], eos_id: int) -> Iterator[tuple[int, int, bool]]:
    """The start and the stop of each document (its BOS included, its EOS not), and whether an EOS follows."""
    start = 0
    for stop in np.flatnonzero(tokens == eos_id).tolist():
        yield start, stop, True
        start = stop + 1
    if start < len(tokens):
        yield start, len(tokens), False


def _of_tokens(values: NDArray[np.generic] | None, valid: Sequence[bool]) -> tuple[float | None, ...] | None:
    """The value of each token as a target; None for the first token, and where a target is not `valid`."""
    if values is None:
        return None
    of_targets = zip(cast(NDArray[np.floating], values).tolist(), valid, strict=True)
    return (None, *(value if is_valid else None for value, is_valid in of_targets))


def _selected(bits: NDArray[np.generic] | None, targets: int) -> tuple[bool, ...] | None:
    """The bit of each token as a target; false for the first token, which is not a target."""
    if bits is None:
        return None
    return (False, *unpack_mask(cast(NDArray[np.uint8], bits)[None], targets)[0].tolist())
