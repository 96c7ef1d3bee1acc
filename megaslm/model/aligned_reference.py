"""A reference with another tokenizer than the rows: it reads whole documents, and its losses are cut into the rows.

A document's text is made of its tokens, and encoded by the reference's tokenizer. The losses of the reference's tokens
are carried over to the rows' tokens (`megaslm.tokenizer.alignment`). The EOS after a document has the loss of the
reference's own EOS. Documents are packed into the reference's rows, each apart from the others.
"""

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from megaslm.dataset.manifest import Manifest, Reference
from megaslm.dataset.rows import RowReader
from megaslm.errors import NonFiniteLoss
from megaslm.model.reference_model import OnItsWay, ReferenceModel, Window, windows_of
from megaslm.tokenizer.alignment import TokensInText, begins_of, byte_offsets, carried_over
from megaslm.tokenizer.folder_tokens import require_eos, special_id
from megaslm.tokenizer.token_places import PlacingEncoder
from megaslm.tokenizer.tokenizer import load_tokenizer

_ROWS_AT_ONCE = 64


class StreamDocument(NamedTuple):
    """A document of a part, and the targets that its tokens are."""

    first: int
    """The number of its first target over the rows of the part: target i of row r is r·L + i. It is -1 for a part's
    first token, which no row predicts."""
    ids: NDArray[np.int64]
    """(tokens,), without BOS and EOS."""
    has_eos: bool
    """Whether an EOS follows."""

    @property
    def stop(self) -> int:
        """The number after that of its last target."""
        return self.first + len(self.ids) + self.has_eos


class MeasuredRows(NamedTuple):
    """Consecutive rows of a part, with values in nats."""

    first: int
    """The number of the first row."""
    values: NDArray[np.float32]
    """(columns, n, L): the losses and, if asked for, the entropies. 0 at targets of padding and at BOS."""


def documents_over(reader: RowReader, rows: range, manifest: Manifest) -> Iterator[StreamDocument]:
    """The whole documents of a part that have a target in `rows`, in order. Empty ones, as padding is, are left out."""
    length, bos = manifest.seq_len, int(manifest.packing.bos == "document")
    start = position = _document_start(reader, rows.start, manifest)
    begun: list[NDArray[np.int64]] = []
    for row in range(max(start, 0) // length, len(reader), _ROWS_AT_ONCE):
        begin, stream = _stream(reader, row, manifest)
        stream = stream[max(0, start - begin) :]
        *ended, rest = np.split(stream, np.flatnonzero(stream == manifest.eos_id) + 1)
        for piece in ended:
            document = np.concatenate([*begun, piece])
            begun.clear()
            if len(document) > bos + 1:
                yield StreamDocument(position + bos, document[bos:-1], has_eos=True)
            position += len(document)
            if position >= rows.stop * length:
                return
        begun.append(rest)
    document = np.concatenate([np.empty(0, np.int64), *begun])
    if len(document) > bos:
        yield StreamDocument(position + bos, document[bos:], has_eos=False)


def _document_start(reader: RowReader, row: int, manifest: Manifest) -> int:
    """The number of the target at which the document begins that holds the first target of a row."""
    target = row * manifest.seq_len
    for start in range(row - _ROWS_AT_ONCE, -_ROWS_AT_ONCE, -_ROWS_AT_ONCE):
        begin, stream = _stream(reader, max(start, 0), manifest)
        ends = np.flatnonzero(stream[: target - begin] == manifest.eos_id)
        if len(ends):
            return begin + int(ends[-1]) + 1
    return -manifest.packing.overlap_tokens


def _stream(reader: RowReader, row: int, manifest: Manifest) -> tuple[int, NDArray[np.int64]]:
    """Some tokens of a part as rows predict them, from a row on, and the number of the first one as a target."""
    tokens = reader.rows(row, min(row + _ROWS_AT_ONCE, len(reader)))["tokens"].astype(np.int64)
    predicted = tokens[:, 1:].ravel()
    if row == 0 and manifest.packing.overlap_tokens:
        return -1, np.concatenate([tokens[0, :1], predicted])
    return row * manifest.seq_len, predicted


class _Reading:
    """A document in the reference's tokens, while these are measured."""

    def __init__(
        self,
        document: StreamDocument,
        ids: NDArray[np.int64],
        own_begins: NDArray[np.int64],
        begins: NDArray[np.int64],
        offsets: NDArray[np.int64],
        columns: int,
    ) -> None:
        self.document = document
        self.ids = ids
        """What the reference reads: BOS, its tokens of the text, EOS."""
        self.windows_left = 0
        self._own_begins, self._begins, self._offsets = own_begins, begins, offsets
        self._values = np.zeros((columns, len(ids) - 1), dtype=np.float32)

    def needed(self, targets: range) -> range:
        """The reference's targets whose losses are carried over to these targets of the part."""
        begin, stop = max(0, targets.start - self.document.first), targets.stop - self.document.first
        own, tokens = len(self._own_begins), len(self._begins)
        both = np.intersect1d(self._own_begins, self._begins)
        stretch = np.searchsorted(both, self._begins, side="right") - 1
        # The reference's first token of each stretch, then the end. A text may have no token of the reference at all.
        edges = np.append(np.searchsorted(self._own_begins, both), own)
        first = edges[stretch[begin]] if begin < tokens else own
        last = own + 1 if stop > tokens else edges[stretch[stop - 1] + 1]
        return range(int(first), int(last))

    def put(self, window: Window, values: NDArray[np.float32]) -> None:
        """Takes the (columns, targets) values of a window."""
        self._values[:, window.fresh : window.stop] = values[:, window.fresh - window.start :]
        self.windows_left -= 1

    def carried_over(self) -> NDArray[np.floating]:
        """(columns, targets) values of the document's targets."""
        own = len(self._own_begins)
        of_text = (
            carried_over(self._values[:, :own], self._own_begins, self._begins, self._offsets)
            if own
            else np.zeros((len(self._values), len(self._begins)))
        )
        return np.hstack([of_text, self._values[:, own:]]) if self.document.has_eos else of_text


class _Piece(NamedTuple):
    """A window of a document, and its place in a batch: a row, and the column of its first token."""

    reading: _Reading
    window: Window
    row: int
    column: int


class _Batch:
    """Rows of the reference that are filled with windows of documents."""

    def __init__(self, rows: int, window: int, eos_id: int) -> None:
        self.tokens = np.full((rows, window + 1), eos_id, dtype=np.int64)
        self.pieces: list[_Piece] = []
        self._used = [0] * rows

    def add(self, reading: _Reading, window: Window) -> bool:
        """Puts a window into the first row with room for it. False if no row has."""
        ids = reading.ids[window.start : window.stop + 1]
        for row, used in enumerate(self._used):
            if used + len(ids) <= self.tokens.shape[1]:
                self.tokens[row, used : used + len(ids)] = ids
                self.pieces.append(_Piece(reading, window, row, used))
                self._used[row] += len(ids)
                return True
        return False

    def bounds(self) -> NDArray[np.int32]:
        """The first token of each window, of each row and of its padding, then the number of inputs."""
        rows, length = self.tokens.shape[0], self.tokens.shape[1] - 1
        starts = [piece.row * length + piece.column for piece in self.pieces if piece.column < length]
        paddings = [row * length + used for row, used in enumerate(self._used) if used < length]
        return np.array(sorted({*starts, *paddings, rows * length}), dtype=np.int32)


class AlignedReference:
    """Measures rows of a part through the reference's own tokens."""

    def __init__(
        self, model: ReferenceModel, manifest: Manifest, record: Reference, *, tokenizer: Path, folder: Path
    ) -> None:
        """`manifest`: of the rows. `record`: of the reference. `tokenizer`: the folder of the rows' tokenizer.
        `folder`: the reference's, with its own.

        Raises DataError where a tokenizer cannot be read, or the reference's names no EOS.
        """
        self.read_tokens = 0
        """Tokens that the reference has read so far, without padding."""
        self._model, self._manifest = model, manifest
        self._record = record
        self._rows_text = TokensInText(tokenizer)
        self._own = PlacingEncoder(folder)
        own = load_tokenizer(folder)
        self._eos_id = require_eos(folder, own)
        bos_id = special_id(folder, own, "bos")
        # Something has to stand before the first token for it to have a loss.
        self._before = self._eos_id if bos_id is None else bos_id

    @classmethod
    def load(
        cls,
        folder: Path,
        manifest: Manifest,
        record: Reference,
        *,
        tokenizer: Path,
        device: torch.device,
        compiled: bool = False,
    ) -> "AlignedReference":
        """The model of a folder, for rows of `manifest`. Raises as `__init__` and `ReferenceModel.load`."""
        eos_id = require_eos(folder, load_tokenizer(folder))
        model = ReferenceModel.load(folder, record, eos_id=eos_id, device=device, compiled=compiled)
        return cls(model, manifest, record, tokenizer=tokenizer, folder=folder)

    def measure(self, reader: RowReader, rows: range, place: str) -> Iterator[MeasuredRows]:
        """The rows of a part in order. `place` is the part's name in messages.

        Raises NonFiniteLoss where the reference gives NaN or an infinite value, CorruptData where a shard is corrupt.
        """
        length = self._manifest.seq_len
        targets = range(rows.start * length, rows.stop * length)
        values = np.zeros((1 + self._record.entropy, len(rows), length), dtype=np.float32)
        flat = values.reshape(len(values), -1)
        done = 0
        for document, of_document in self._measured(reader, rows, place):
            begin, stop = max(document.first, targets.start), min(document.stop, targets.stop)
            flat[:, begin - targets.start : stop - targets.start] = of_document[
                :, begin - document.first : stop - document.first
            ]
            full = (stop - targets.start) // length
            if full > done:
                yield MeasuredRows(rows.start + done, values[:, done:full])
                done = full
        if done < len(rows):
            yield MeasuredRows(rows.start + done, values[:, done:])

    def _measured(
        self, reader: RowReader, rows: range, place: str
    ) -> Iterator[tuple[StreamDocument, NDArray[np.floating]]]:
        """The documents, in order, with the values of their targets."""
        waiting: deque[_Reading] = deque()
        earlier: tuple[_Batch, OnItsWay] | None = None
        for batch in self._batches(reader, rows, waiting):
            measured = batch, self._start(batch)
            if earlier is not None:
                self._take(*earlier, place)
            earlier = measured
            yield from self._ready(waiting)
        if earlier is not None:
            self._take(*earlier, place)
        yield from self._ready(waiting)

    def _ready(self, waiting: deque[_Reading]) -> Iterator[tuple[StreamDocument, NDArray[np.floating]]]:
        while waiting and waiting[0].windows_left == 0:
            reading = waiting.popleft()
            yield reading.document, reading.carried_over()

    def _batches(self, reader: RowReader, rows: range, waiting: deque[_Reading]) -> Iterator[_Batch]:
        """Full batches, and a last one. All have one shape, so that losses do not depend on the number of ranks.

        Appends each document to `waiting` when all of its windows are in a batch of these.
        """
        length = self._manifest.seq_len
        targets = range(rows.start * length, rows.stop * length)
        batch = self._empty_batch()
        for document in documents_over(reader, rows, self._manifest):
            reading = self._read(document)
            windows = self._windows(reading, targets)
            reading.windows_left = len(windows)
            waiting.append(reading)
            for window in windows:
                if not batch.add(reading, window):
                    yield batch
                    batch = self._empty_batch()
                    batch.add(reading, window)
        if batch.pieces:
            yield batch

    def _empty_batch(self) -> _Batch:
        return _Batch(self._record.batch_rows, self._record.window, self._eos_id)

    def _read(self, document: StreamDocument) -> _Reading:
        text, begins = self._rows_text.placed(document.ids)
        own = self._own.encode(text)
        ids = np.concatenate([[self._before], own.ids.astype(np.int64), [self._eos_id]])
        return _Reading(document, ids, begins_of(own), begins, byte_offsets(text), 1 + self._record.entropy)

    def _windows(self, reading: _Reading, targets: range) -> list[Window]:
        """The windows of a document that hold what is needed for these targets of the part."""
        count = len(reading.ids) - 1
        window = min(self._record.window, count)
        needed = reading.needed(targets)
        return [
            each
            for each in windows_of(count, window, min(self._record.stride, window))
            if each.fresh < needed.stop and needed.start < each.stop
        ]

    def _start(self, batch: _Batch) -> OnItsWay:
        self.read_tokens += sum(piece.window.stop - piece.window.start for piece in batch.pieces)
        return OnItsWay(self._model.measure_apart(torch.from_numpy(batch.tokens), torch.from_numpy(batch.bounds())))

    def _take(self, batch: _Batch, measured: OnItsWay, place: str) -> None:
        values = measured.arrived().numpy()
        for reading, window, row, column in batch.pieces:
            of_window = values[:, row, column : column + window.stop - window.start]
            if not np.isfinite(of_window).all():
                row_of = max(reading.document.first, 0) // self._manifest.seq_len
                raise NonFiniteLoss(
                    f"{place}, the document that begins in row {row_of} of the part: the reference gives a loss or an "
                    "entropy that is NaN or infinite; try --precision fp32"
                )
            reading.put(window, of_window)
