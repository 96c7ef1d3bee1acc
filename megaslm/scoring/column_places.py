"""The lines of a column file as spans of a part's targets, and spans as the values of rows.

The targets of a part are numbered over its rows: target `position` of row `row` is row · L + position.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megaslm.dataset.manifest import Manifest
from megaslm.dataset.rows import RowReader
from megaslm.errors import DataError
from megaslm.scoring.column_file import ColumnFile, Lines

_TOKENS_AT_ONCE = 1 << 20


class Spans(NamedTuple):
    """n spans of a part's targets in order, none of which overlap: (n,) each."""

    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    value: NDArray[np.generic]


@dataclass(frozen=True)
class Documents:
    """The documents of a part, n of them, without EOS and BOS, in order.

    `first`: (n,) int64, the target that each one's first token is; −1 for the first token of a part without BOS, which
    is no target. `tokens`: (n,) int64.
    """

    first: NDArray[np.int64]
    tokens: NDArray[np.int64]

    @classmethod
    def of(cls, reader: RowReader, manifest: Manifest) -> "Documents":
        """Reads all rows of a part once."""
        bos, seq_len = manifest.packing.bos, manifest.seq_len
        ends = [np.empty(0, np.int64)]
        at_once = max(1, _TOKENS_AT_ONCE // seq_len)
        for start in range(0, len(reader), at_once):
            tokens = reader.rows(start, min(len(reader), start + at_once))["tokens"]
            if start == 0 and bos != "row" and tokens[0, 0] == manifest.eos_id:
                ends.append(np.array([-1]))
            # The first token of a row is BOS, or the last one of the row before.
            ends.append(np.flatnonzero(tokens[:, 1:] == manifest.eos_id) + start * seq_len)
        stops = np.concatenate(ends)
        before = -1 if bos != "row" else 0
        first = np.concatenate([[before], stops[:-1] + 1])[: len(stops)] + (bos == "document")
        is_one = stops > first
        return cls(first[is_one], (stops - first)[is_one])


@dataclass(frozen=True)
class PartLines:
    """The lines of a column file that are about one part."""

    file: ColumnFile
    first: int
    """The number of the first one in the file, from 0."""
    count: int
    first_unit: int
    """The number of the part's first row or document in the dataset."""

    def spans(self, documents: Documents | None) -> Iterator[Spans]:
        """The spans that they name, some at a time. `documents` of the part are needed if lines name documents.

        Raises DataError as `ColumnFile.read` does.
        """
        for lines in self.file.read(self.first, self.count):
            yield spans_of(lines, self.first_unit, documents, self.file)


def spans_of(lines: Lines, first_unit: int, documents: Documents | None, file: ColumnFile) -> Spans:
    """The spans that lines about one part name; see `PartLines`.

    Raises DataError where a line ends after the EOS of its document.
    """
    unit = lines.unit - first_unit
    if documents is None:
        start = unit * file.manifest.seq_len + lines.start
        return Spans(start, start + lines.stop - lines.start, lines.value)
    # The EOS of a document is the token after its last one.
    most = documents.tokens[unit] + 1
    if (lines.stop > most).any():
        line = int((lines.stop > most).argmax())
        raise DataError(
            f"{file.path}, line {lines.first + line + 1}: ends at token {lines.stop[line]}; its document has "
            f"{most[line]}, EOS included"
        )
    first = documents.first[unit]
    return Spans(np.maximum(0, first + lines.start), first + lines.stop, lines.value)


class SpanValues:
    """Spans as the values of consecutive targets."""

    def __init__(self, spans: Iterator[Spans], default: bool | float) -> None:
        self._spans = spans
        self._default = default
        self._pending: Spans | None = None

    def take(self, start: int, stop: int, dtype: type[np.generic]) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """The values of the targets `start` to `stop` (excluded), (n,) of `dtype`, and which of them spans cover, (n,)
        bool. Called with ranges that follow one another."""
        values, covered = np.full(stop - start, self._default, dtype), np.zeros(stop - start, np.bool_)
        while (spans := self._pending or next(self._spans, None)) is not None:
            begun = int(np.searchsorted(spans.start, stop))
            starts, stops = spans.start[:begun].clip(min=start) - start, spans.stop[:begun].clip(max=stop) - start
            lengths = (stops - starts).clip(min=0)
            places = np.repeat(starts - (lengths.cumsum() - lengths), lengths) + np.arange(lengths.sum())
            values[places], covered[places] = np.repeat(spans.value[:begun], lengths), True
            # The last span may go on after these targets.
            done = begun - 1 if begun and spans.stop[begun - 1] > stop else begun
            self._pending = None
            if done < len(spans.start):
                self._pending = Spans(spans.start[done:], spans.stop[done:], spans.value[done:])
                break
        return values, covered
