"""The file of a column to attach: parquet, whose lines name targets in the order of the dataset and give them a value.

A line names a target by `row` and `position`, or tokens by `document`, `start` and `stop`. Rows and documents are
counted over a split, or over a domain where the file has the column `domain`. A dataset keeps neither names nor texts
of documents, and a token of a tokenizer that normalises has no certain place in a text. Numbers of documents and of
tokens are exact for every dataset, and need nothing but the dataset.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megaslm.dataset.manifest import AttachedName, Manifest
from megaslm.errors import DataError
from megaslm.files import looked_in

if TYPE_CHECKING:
    from pyarrow import DataType, RecordBatch
    from pyarrow.parquet import ParquetFile

_BATCH_LINES = 1 << 17
_BUFFER_BYTES = 2**20
_OF_DATASET = b"dataset"
_FEWEST_DIGITS = 12
_PLACES = ("split", "domain")
_ADDRESSES: dict[Literal["row", "document"], tuple[str, ...]] = {
    "row": ("row", "position"),
    "document": ("document", "start", "stop"),
}


class Lines(NamedTuple):
    """Lines of the file, n of them, in order.

    `first`: the number of the first one in the file, from 0. `unit`: (n,) int64, the row or the document that each
    names, counted over the whole dataset. `start`, `stop`: (n,) int64, the targets of the row, or the tokens of the
    document. `value`: (n,) bool or float32.
    """

    first: int
    unit: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    value: NDArray[np.generic]

    def part(self, begin: int, end: int) -> "Lines":
        """The lines `begin` to `end` (excluded) of these."""
        some = slice(begin, end)
        return Lines(self.first + begin, self.unit[some], self.start[some], self.stop[some], self.value[some])


@dataclass(frozen=True)
class ColumnFile:
    """A file whose columns fit; see `open_column`."""

    path: Path
    addressed_by: Literal["row", "document"]
    lines: int
    """Their number."""
    sha256: str
    """Hash of the file."""
    places: tuple[str, ...]
    """Which of `split` and `domain` it has."""
    manifest: Manifest
    """The dataset's."""

    def read(self, first: int, count: int) -> Iterator[Lines]:
        """`count` lines from the line `first` on, some at a time.

        Raises DataError, which names the line, where a value is missing or not finite, where a line names a row or a
        document that the dataset has not, and where lines overlap or are out of order.
        """
        before: Lines | None = None
        for start, batch in self._batches(first, count):
            lines = self._checked(start, batch)
            self._require_order(lines if before is None else _joined(before, lines))
            before = lines.part(len(lines.unit) - 1, len(lines.unit))
            yield lines

    def _batches(self, first: int, count: int) -> Iterator[tuple[int, "RecordBatch"]]:
        """The lines, with the number of the first one of each batch."""
        with _opened(self.path) as table, _explaining(self.path):
            groups = [table.metadata.row_group(number).num_rows for number in range(table.num_row_groups)]
            starts = list(accumulate(groups, initial=0))
            needed = [
                number
                for number, rows in enumerate(groups)
                if starts[number] < first + count and first < starts[number] + rows
            ]
            columns = [*self.places, *_ADDRESSES[self.addressed_by], "value"]
            at = starts[needed[0]] if needed else first
            for batch in table.iter_batches(_BATCH_LINES, row_groups=needed, columns=columns, use_threads=False):
                begin, end = max(0, first - at), min(batch.num_rows, first + count - at)
                if begin < end:
                    yield at + begin, batch.slice(begin, end - begin)
                at += batch.num_rows

    def _checked(self, first: int, batch: "RecordBatch") -> Lines:
        for name in batch.schema.names:
            column = batch.column(name)
            if column.null_count:
                line = int(column.is_null().to_numpy(zero_copy_only=False).argmax())
                raise self._wrong(first + line, f"{name} is null; expected a value")
        value = batch.column("value").to_numpy(zero_copy_only=False)
        if value.dtype != np.bool_:
            self._require(first, np.isfinite(value), lambda line: f"has value {value[line]}; expected a finite number")
        unit, start, *stops = (_integers(batch, name) for name in _ADDRESSES[self.addressed_by])
        base, count = self._extents(first, batch)
        self._require(
            first,
            (unit >= 0) & (unit < count),
            lambda line: f"names {self.addressed_by} {unit[line]}; expected 0 to {count[line] - 1}",
        )
        if stops:
            (stop,) = stops
            self._require(
                first,
                (start >= 0) & (stop > start),
                lambda line: f"names tokens {start[line]} to {stop[line]} (excluded); expected one at least, from 0 on",
            )
        else:
            stop, seq_len = start + 1, self.manifest.seq_len
            self._require(
                first,
                (start >= 0) & (start < seq_len),
                lambda line: f"names position {start[line]}; expected 0 to {seq_len - 1}",
            )
        return Lines(first, base + unit, start, stop, value)

    def _extents(self, first: int, batch: "RecordBatch") -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each line, where the counting of its rows or documents begins in the dataset, and how many there are."""
        if not self.places and ("train", None) in self._units:
            base, count = self._units["train", None]
            return np.full(batch.num_rows, base), np.full(batch.num_rows, count)
        table = np.zeros((batch.num_rows, 2), np.int64)
        texts = [np.asarray(batch.column(name).to_pylist()) for name in self.places]
        named = dict(zip(self.places, texts, strict=True))
        keys = [named.get("split", np.full(batch.num_rows, "train")), named.get("domain", np.full(batch.num_rows, ""))]
        for split in np.unique(keys[0]).tolist():
            for domain in np.unique(keys[1][keys[0] == split]).tolist():
                lines = (keys[0] == split) & (keys[1] == domain)
                extent = self._units.get((split, domain if "domain" in named else None))
                if extent is None:
                    place = f"{split}/{domain}" if "domain" in named else split
                    has = ", ".join(f"{split}/{domain}" for split, domain in self._units if domain is not None)
                    raise self._wrong(first + int(lines.argmax()), f"is for {place}; the dataset has {has}")
                table[lines] = extent
        return table[:, 0], table[:, 1]

    @cached_property
    def _units(self) -> dict[tuple[str, str | None], tuple[int, int]]:
        """By split and domain, and by split alone (None): the number of the first row or document, and how many."""
        found: dict[tuple[str, str | None], tuple[int, int]] = {}
        first = 0
        for split, domains in self.manifest.splits.items():
            begin = first
            for domain, share in domains.items():
                count = share.rows if self.addressed_by == "row" else share.documents
                found[split, domain] = (first, count)
                first += count
            found[split, None] = (begin, first - begin)
        return found

    def _require(self, first: int, is_right: NDArray[np.bool_], finding: Callable[[int], str]) -> None:
        """Raises DataError about the first line that is not right. `finding` gets its number among these lines."""
        if not is_right.all():
            line = int((~is_right).argmax())
            raise self._wrong(first + line, finding(line))

    def _require_order(self, lines: Lines) -> None:
        """Raises DataError where a line does not come after the one before it."""
        same = lines.unit[1:] == lines.unit[:-1]
        is_right = (lines.unit[1:] > lines.unit[:-1]) | (same & (lines.start[1:] >= lines.stop[:-1]))
        if not is_right.all():
            line = int((~is_right).argmax()) + 1
            overlaps = same[line - 1] and lines.stop[line] > lines.start[line - 1]
            finding = (
                "overlaps the line before it; each target may be named once"
                if overlaps
                else f"comes after line {lines.first + line}, which names a later place; sort the file in the order of "
                "the dataset"
            )
            raise self._wrong(lines.first + line, finding)

    def _wrong(self, line: int, finding: str) -> DataError:
        return DataError(f"{self.path}, line {line + 1}: {finding}")


def open_column(path: Path, name: AttachedName, manifest: Manifest, place: str) -> ColumnFile:
    """The column file at `path`, for the dataset of `manifest` at `place`. Its lines are not read.

    Raises DataError where it is not a parquet file, belongs to another dataset, lacks a column, or has one of another
    type.
    """
    from pyarrow import types

    with _opened(path) as table:
        schema, lines = table.schema_arrow, table.metadata.num_rows
    _require_dataset(path, (schema.metadata or {}).get(_OF_DATASET), manifest, place)
    by = [address for address in _ADDRESSES if address in schema.names]
    if len(by) != 1:
        raise DataError(
            f"{path}: has the columns {', '.join(schema.names) or 'none'}; expected value, and either row and "
            "position, or document, start and stop"
        )
    places = tuple(each for each in _PLACES if each in schema.names)
    needed = (*_ADDRESSES[by[0]], "value")
    missing = [each for each in needed if each not in schema.names]
    if missing:
        raise DataError(f"{path}: lacks {', '.join(missing)}; lines by {by[0]} have {', '.join(needed)}")
    of_value = ("float32", types.is_float32) if name == "weight" else ("bool", types.is_boolean)
    expected = dict.fromkeys(needed, ("integers", types.is_integer)) | dict.fromkeys(places, ("strings", _is_text))
    for each, (words, is_right) in (expected | {"value": of_value}).items():
        found = schema.field(each).type
        if not is_right(found):
            raise DataError(f"{path}: {each} is of type {found}; expected {words} for --as {name}")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return ColumnFile(path, by[0], lines, sha256, places, manifest)


def _require_dataset(path: Path, stated: bytes | None, manifest: Manifest, place: str) -> None:
    """Raises DataError unless the file says that it belongs to the dataset."""
    expected = manifest.tokens_fingerprint()
    if stated is None:
        raise DataError(
            f"{path}: does not say which dataset it belongs to; write it with the key dataset = "
            f"{expected[:_FEWEST_DIGITS]} in the metadata of its schema"
        )
    found = stated.decode("utf-8", "replace")
    if len(found) < _FEWEST_DIGITS or not expected.startswith(found):
        raise DataError(
            f"{path}: belongs to the dataset with the tokens {found!r}; {place} has {expected[:_FEWEST_DIGITS]}: make "
            "the column of this dataset"
        )


def _is_text(found: "DataType") -> bool:
    from pyarrow import types

    return bool(types.is_string(found) or types.is_large_string(found))


def _integers(batch: "RecordBatch", name: str) -> NDArray[np.int64]:
    return batch.column(name).to_numpy(zero_copy_only=False).astype(np.int64)


def _joined(before: Lines, lines: Lines) -> Lines:
    """The lines after another one."""
    columns: Sequence[NDArray[np.generic]] = before[1:]
    return Lines(before.first, *(np.concatenate(pair) for pair in zip(columns, lines[1:], strict=True)))


@contextmanager
def _opened(path: Path) -> Iterator["ParquetFile"]:
    from pyarrow import parquet

    if not path.is_file():
        raise DataError(f"{path}: is not a file{looked_in(path)}; name the parquet file of the column")
    with _explaining(path):
        # Read page by page: a row group may be larger than the memory.
        table = parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True)
    with table:
        yield table


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Turns the errors of pyarrow into DataError."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        found = " ".join(str(error).split()).rstrip(".; ")
        raise DataError(f"{path}: cannot be read as parquet: {found}; write it again") from error
