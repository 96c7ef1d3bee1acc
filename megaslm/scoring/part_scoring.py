"""Scores rows of a part with the reference, in batches of one shape, and writes a part with their losses.

On a GPU three batches are in flight: one is read and one is written while the device works on the third.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megaslm.dataset.manifest import Manifest, Part
from megaslm.dataset.rows import RowReader, Rows
from megaslm.dataset.score_summary import PartStatistics
from megaslm.dataset.shards import RowFormat, part_writer
from megaslm.errors import MegaSLMError, NonFiniteLoss
from megaslm.files import sync, unfinished
from megaslm.model.aligned_reference import AlignedReference
from megaslm.model.reference_model import OnItsWay, ReferenceModel, as_stored, top_as_stored
from megaslm.scoring.loss_statistics import LossStatistics
from megaslm.slm.valid_targets import valid_targets

T = TypeVar("T")
OnRows = Callable[[int], object]
"""Called with the number of rows that were scored since the last call."""


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made in a thread, one ahead of its use. Exceptions are raised here."""
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = thread.submit(next, items, None)
            yield item


class StoredRows(NamedTuple):
    """Rows of one domain as stored: (n, L+1) tokens, and all other columns by name."""

    tokens: NDArray[np.unsignedinteger]
    domain: int
    others: Rows

    @classmethod
    def of(cls, rows: Rows) -> "StoredRows":
        """The columns of rows that a `RowReader` has read."""
        others = {name: column for name, column in rows.items() if name not in ("tokens", "domain")}
        return cls(cast(NDArray[np.unsignedinteger], rows["tokens"]), int(rows["domain"][0]), others)

    @property
    def target_mask(self) -> NDArray[np.uint8] | None:
        """(n, L), where the dataset has it."""
        return cast(NDArray[np.uint8] | None, self.others.get("target_mask"))


class TopRows(NamedTuple):
    """The reference's most likely tokens, see `PartWriter.write`: (n, L, K+1) float16 and (n, L, K) unsigned."""

    ref_top_logprob: NDArray[np.float16]
    ref_top_id: NDArray[np.unsignedinteger]


class ScoredRows(NamedTuple):
    """Stored rows, and the reference's losses and entropies: (columns, n, L) float16; and its top tokens, if stored."""

    stored: StoredRows
    values: NDArray[np.float16]
    top: TopRows | None = None

    def records(self) -> NDArray[np.void]:
        """What the reference gave, row by row: (n,)."""
        columns = {"values": self.values.swapaxes(0, 1), **({} if self.top is None else self.top._asdict())}
        records = np.empty(
            self.values.shape[1], [(name, column.dtype, column.shape[1:]) for name, column in columns.items()]
        )
        for name, column in columns.items():
            records[name] = column
        return records

    @classmethod
    def of_records(cls, stored: StoredRows, records: NDArray[np.void]) -> "ScoredRows":
        """The inverse of `records`."""
        values, *top = (np.ascontiguousarray(records[name]) for name in records.dtype.names or ())
        return cls(stored, np.ascontiguousarray(values.swapaxes(0, 1)), TopRows(*top) if top else None)


def write_part(
    folder: Path, manifest: Manifest, column: str, scored: Iterable[ScoredRows]
) -> tuple[Part, PartStatistics]:
    """Write rows, in order, as the part `folder` of the dataset that `manifest` describes. Losses go to `column`."""
    shares_a_token = manifest.packing.overlap_tokens == 1
    statistics = LossStatistics(manifest.eos_id, rows_share_a_token=shares_a_token)
    with part_writer(folder, RowFormat.of(manifest)) as writer:
        for rows in scored:
            stored, measured = rows.stored, dict(zip((column, "ref_entropy"), rows.values, strict=False))
            top = {} if rows.top is None else rows.top._asdict()
            writer.write(stored.tokens, stored.domain, **stored.others, **measured, **top)
            statistics.add(stored.tokens, rows.values[0], stored.target_mask)
    return writer.part, statistics.finish()


def write_values(path: Path, scored: Iterable[ScoredRows]) -> None:
    """Write the values of rows, in order, as one array to `path`."""
    with unfinished(path).open("wb") as file:
        np.save(file, np.concatenate([rows.records() for rows in scored]), allow_pickle=False)
    sync(unfinished(path))
    unfinished(path).replace(path)


def with_values(reader: RowReader, paths: Sequence[Path], at_once: int) -> Iterator[ScoredRows]:
    """The rows of `reader` in order, `at_once` at a time, with their values from files of `write_values`."""
    start = 0
    for path in paths:
        records: NDArray[np.void] = np.load(path, mmap_mode="r", allow_pickle=False)
        for first in range(0, len(records), at_once):
            some = records[first : first + at_once]
            rows = reader.rows(start, start + len(some))
            start += len(some)
            yield ScoredRows.of_records(StoredRows.of(rows), some)


class Scorer(Protocol):
    """Scores rows of a part."""

    @property
    def read_tokens(self) -> int | None:
        """Tokens that the model has read so far; None where the windows of the rows tell."""
        ...

    def scored(self, reader: RowReader, rows: range, place: str, on_rows: OnRows) -> Iterator[ScoredRows]:
        """Rows of a part, from a multiple of the batch's rows on, with the model's losses and entropies.

        `place` is the part's name in messages. Raises NonFiniteLoss where the model gives NaN or an infinite value,
        CorruptData where a shard is corrupt.
        """
        ...


@dataclass(frozen=True)
class AlignedScorer:
    """Scores rows with a model that has another tokenizer."""

    reference: AlignedReference
    eos_id: int
    """Of the rows."""

    @property
    def read_tokens(self) -> int:
        """See `Scorer`."""
        return self.reference.read_tokens

    def scored(self, reader: RowReader, rows: range, place: str, on_rows: OnRows) -> Iterator[ScoredRows]:
        """See `Scorer`."""
        for first, values in self.reference.measure(reader, rows, place):
            stored = StoredRows.of(reader.rows(first, first + values.shape[1]))
            valid = valid_targets(stored.tokens, self.eos_id, stored.target_mask)
            in_storage = as_stored(torch.from_numpy(values), torch.from_numpy(valid))
            yield ScoredRows(stored, in_storage.numpy())
            on_rows(len(stored.tokens))


@dataclass(frozen=True)
class PartScorer:
    """Scores rows with a model of their tokenizer."""

    model: ReferenceModel
    eos_id: int
    batch_rows: int
    """Rows per batch. All batches are equally large, so that a row's losses do not depend on the number of ranks."""

    @property
    def read_tokens(self) -> None:
        """See `Scorer`."""

    def scored(self, reader: RowReader, rows: range, place: str, on_rows: OnRows) -> Iterator[ScoredRows]:
        """See `Scorer`."""
        try:
            for batch in self._measured(reader, rows):
                yield _arrived(batch, place)
                on_rows(len(batch.stored.tokens))
        except torch.OutOfMemoryError as error:
            raise MegaSLMError(
                f"{place}: {self.batch_rows} rows at once do not fit into the memory of {self.model.device}; lower "
                f"--batch-rows ({error})"
            ) from error

    def _measured(self, reader: RowReader, rows: range) -> Iterator["_Scored"]:
        """Batches whose values are being copied to the host. Each is yielded once the next one is under way."""
        earlier: _Scored | None = None
        for batch in read_ahead(self._batches(reader, rows)):
            measured = self._measure(batch)
            if earlier is not None:
                yield earlier
            earlier = measured
        if earlier is not None:
            yield earlier

    def _batches(self, reader: RowReader, rows: range) -> Iterator["_Batch"]:
        for start in range(rows.start, rows.stop, self.batch_rows):
            stored = StoredRows.of(reader.rows(start, min(rows.stop, start + self.batch_rows)))
            tokens = self._padded(stored.tokens, np.int64)
            mask = None if stored.target_mask is None else self._padded(stored.target_mask, np.bool_)
            yield _Batch(start, stored, tokens, mask)

    def _padded(self, column: NDArray[np.generic], dtype: type[np.generic]) -> Tensor:
        """A column of at most `batch_rows` rows, with copies of the last one up to that number."""
        padding = np.repeat(column[-1:], self.batch_rows - len(column), axis=0)
        return torch.from_numpy(np.concatenate([column, padding]).astype(dtype))

    def _measure(self, batch: "_Batch") -> "_Scored":
        # Pinned here, not in the reading thread: that thread would open the first GPU, even if this rank has another.
        tokens, mask = (
            column.pin_memory() if column is not None and self.model.device.type == "cuda" else column
            for column in (batch.tokens, batch.target_mask)
        )
        assert tokens is not None  # every batch has tokens
        mask = None if mask is None else mask.to(self.model.device, non_blocking=True)
        valid = valid_targets(tokens.to(self.model.device, non_blocking=True), self.eos_id, mask)
        measured = self.model.measure(tokens)
        values = torch.stack([as_stored(column, valid) for column in measured.columns])
        finite = torch.stack([torch.isfinite(column.where(valid, 0.0)).all(1) for column in measured.columns])
        on_its_way = None if measured.top is None else tuple(map(OnItsWay, top_as_stored(measured.top, valid)))
        return _Scored(batch.start, batch.stored, OnItsWay(values), OnItsWay(finite), on_its_way)


class _Batch(NamedTuple):
    """Rows of a part from `start` on as stored and, padded with copies of rows, as (B, L+1) int64 and (B, L) bool."""

    start: int
    stored: StoredRows
    tokens: Tensor
    target_mask: Tensor | None


class _Scored(NamedTuple):
    """The same rows with values, (columns, B, L) float16; whether all values of a row are finite, (columns, B); and any
    top tokens, (B, L, K+1) float16 and (B, L, K) int32."""

    start: int
    stored: StoredRows
    values: OnItsWay
    finite: OnItsWay
    top: tuple[OnItsWay, ...] | None


def _arrived(batch: _Scored, place: str) -> ScoredRows:
    count = len(batch.stored.tokens)
    finite = batch.finite.arrived()[:, :count]
    if not finite.all():
        column, row = (int(number) for number in (~finite).nonzero()[0])
        what = ("a loss", "an entropy")[column]
        raise NonFiniteLoss(
            f"{place}, row {batch.start + row} of the part: the reference gives {what} that is NaN or infinite; "
            "try --precision fp32"
        )
    top = None
    if batch.top is not None:
        log_probabilities, ids = (each.arrived()[:count].numpy() for each in batch.top)
        top = TopRows(log_probabilities, ids.astype(batch.stored.tokens.dtype))
    return ScoredRows(batch.stored, batch.values.arrived()[:, :count].numpy(), top)
