"""Packs documents into rows: joined by EOS and cut every L tokens, with BOS where the recipe wants it. And back."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megaslm.config.recipe import Bos
from megaslm.errors import DataError

Tokens = NDArray[np.int64]


def token_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The stored type of rows: uint16 if it holds every id below `vocab_size`, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def as_stored(rows: Tokens, vocab_size: int) -> NDArray[np.unsignedinteger]:
    """`rows` in their stored type. Raises DataError for an id outside the vocabulary."""
    if rows.size and not 0 <= rows.min() <= rows.max() < vocab_size:
        outside = rows.min() if rows.min() < 0 else rows.max()
        raise DataError(
            f"the id {outside} is not in a vocabulary of {vocab_size}; give a tokenizer whose ids are below its "
            "vocabulary's size"
        )
    return rows.astype(token_dtype(vocab_size))


def document_bounds(inputs: NDArray[np.integer], eos_id: int) -> NDArray[np.int32]:
    """The first token of each document of (B, L) ids, read as one row, then B·L: (documents + 1,).

    A document starts at a row's first token and after every EOS.
    """
    starts = np.ones(inputs.shape, dtype=bool)
    np.equal(inputs[:, :-1], eos_id, out=starts[:, 1:])
    return np.append(np.flatnonzero(starts), inputs.size).astype(np.int32)


class RowPacker:
    """Packs the documents of one part. Every token of a document and every EOS is a target exactly once, except the
    part's first token where rows do not begin with BOS.

    Neighbouring rows share one token, the last of the one and the first of the other. Rows that begin with BOS share
    none: their first token is the BOS.
    """

    def __init__(self, seq_len: int, eos_id: int, *, bos: Bos = "none", bos_id: int | None = None) -> None:
        """Rows will hold `seq_len` + 1 tokens. `bos_id` is needed unless `bos` is none."""
        mark: Tokens = np.array([] if bos == "none" else [bos_id], dtype=np.int64)
        self._seq_len = seq_len
        self._eos_id = eos_id
        self._before_document = mark if bos == "document" else mark[:0]
        self._before_row = mark if bos == "row" else mark[:0]
        self._overlap = 1 - len(self._before_row)
        self._pending: Tokens = np.empty(0, dtype=np.int64)

    def add(self, documents: Sequence[ArrayLike]) -> Tokens:
        """Appends token ids of whole documents, each (length,) with length > 0, an EOS after each.

        Returns:
            The rows that became full, (n, seq_len + 1) int64; n may be 0.
        """
        eos = np.array([self._eos_id], dtype=np.int64)
        pieces = [self._pending]
        for document in documents:
            pieces += [self._before_document, np.asarray(document, dtype=np.int64), eos]
        stream = np.concatenate(pieces)
        full = max(0, len(stream) - self._overlap) // self._seq_len
        self._pending = stream[full * self._seq_len :]
        return self._rows(stream, full)

    def finish(self) -> Tokens:
        """The last row, padded with EOS: (1, seq_len + 1), or (0, seq_len + 1) where nothing is left to predict."""
        missing = self._seq_len + self._overlap - len(self._pending)
        padded = np.pad(self._pending, (0, missing), constant_values=self._eos_id)
        return self._rows(padded, int(len(self._pending) > self._overlap))

    def _rows(self, stream: Tokens, count: int) -> Tokens:
        if count == 0:
            return np.empty((0, self._seq_len + 1), dtype=np.int64)
        cut = np.lib.stride_tricks.sliding_window_view(stream, self._seq_len + self._overlap)
        rows = cut[:: self._seq_len][:count]
        if self._overlap:
            return rows
        return np.hstack([np.tile(self._before_row, (count, 1)), rows])


def documents_in(batches: Iterable[NDArray[np.integer]], eos_id: int, bos: Bos) -> Iterator[NDArray[np.integer]]:
    """The documents that `RowPacker` packed, whole and in order, without EOS and BOS; each (length,), length > 0.

    `batches` are all rows of one part in order, (n, seq_len + 1) each.
    """
    begun: list[NDArray[np.integer]] = []
    for number, rows in enumerate(batches):
        # The first token of a row is BOS, or the last one of the row before.
        stream = rows[:, 1:].ravel()
        if number == 0 and bos != "row":
            stream = np.concatenate([rows[0, :1], stream])
        *ended, rest = np.split(stream, np.flatnonzero(stream == eos_id) + 1)
        for piece in ended:
            document = np.concatenate([*begun, piece[:-1]])
            begun.clear()
            yield from _not_empty(document, bos)
        begun.append(rest)
    if begun:
        yield from _not_empty(np.concatenate(begun), bos)


def _not_empty(document: NDArray[np.integer], bos: Bos) -> Iterator[NDArray[np.integer]]:
    """The document without its BOS; nothing where it is empty, as padding is."""
    text = document[1:] if bos == "document" else document
    if text.size:
        yield text
