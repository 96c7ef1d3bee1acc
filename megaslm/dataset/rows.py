"""Rows of a dataset by number, in order: for validation and scoring.

Shards are mapped into memory (compressed ones are unpacked, two at a time). There is no shared memory and no barrier:
a reader costs nothing to open and any process may have its own. The column `selected` has one bit per target, the first
of a byte in its lowest bit, and zeros beyond the last target.
"""

from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from megaslm.config.section import Split
from megaslm.dataset.index import CHECKSUM, INDEX, Shard, ShardFile, check_files, read_index
from megaslm.dataset.manifest import read_manifest
from megaslm.errors import CorruptData, DataError

# A shard begins with its number of rows and the offset of each row, all 32-bit.
_OFFSET_DTYPE = np.dtype("<u4")
Rows = dict[str, NDArray[np.generic]]
"""Column name to values; the first axis counts rows."""

FetchShard = Callable[[Path, Shard], None]
"""Called with the path of a missing shard and the shard. Fetches it to that path."""


def mask_bytes(seq_len: int) -> int:
    """The number of bytes that hold the bits of a row."""
    return -(-seq_len // 8)


def pack_mask(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The bits of (n, seq_len) targets: (n, `mask_bytes` seq_len) uint8."""
    return np.packbits(mask, axis=1, bitorder="little")


def unpack_mask(bits: NDArray[np.uint8], seq_len: int) -> NDArray[np.bool_]:
    """The inverse of `pack_mask`: (n, seq_len) bool from (n, `mask_bytes` seq_len) uint8."""
    return np.unpackbits(bits, axis=1, count=seq_len, bitorder="little").view(np.bool_)


def require_checksum(path: Path, content: bytes | memoryview, expected: ShardFile) -> None:
    """Raise CorruptData unless `content`, the bytes of `path`, has the checksum that the index states."""
    stated = expected.hashes.get(CHECKSUM)
    if stated is None:
        raise CorruptData(path, f"has no {CHECKSUM} in {INDEX} to be checked by")
    digest = xxhash.xxh3_64()
    digest.update(content)
    if digest.hexdigest() != stated:
        raise CorruptData(path, f"has the {CHECKSUM} {digest.hexdigest()}, {INDEX} says {stated}")


def unpacked(path: Path, packed: bytes, shard: Shard) -> NDArray[np.uint8]:
    """The bytes of a shard before compression, (n,).

    Raises CorruptData where `packed`, the content of `path`, does not unpack to them.
    """
    import pyarrow

    if shard.compression is None or shard.compression.partition(":")[0] != "zstd":
        raise CorruptData(path, f"is compressed with {shard.compression} by {INDEX}; expected zstd")
    try:
        data = pyarrow.decompress(packed, shard.raw_data.bytes, codec="zstd")
    except OSError as error:
        raise CorruptData(path, f"cannot be unpacked: {error}") from error
    return np.frombuffer(data, dtype=np.uint8)


def rows_in(path: Path, data: NDArray[np.uint8], shard: Shard) -> NDArray[np.void]:
    """The rows of a shard as a structured array (samples,), a view of its bytes `data` (n,).

    Raises CorruptData where the bytes, read from `path`, are not these rows one after another.
    """
    dtype = shard.row_dtype()
    offsets = data[4 : 4 * (shard.samples + 2)].view(_OFFSET_DTYPE)
    if len(offsets) == shard.samples + 1:
        expected = offsets[0] + np.arange(shard.samples + 1, dtype=np.int64) * dtype.itemsize
        counted = data[:4].view(_OFFSET_DTYPE)[0] == shard.samples
        if counted and expected[-1] == len(data) and np.array_equal(offsets, expected):
            return data[expected[0] :].view(dtype)
    raise CorruptData(path, f"does not hold {shard.samples} rows of {dtype.itemsize} bytes")


class RowReader:
    """The rows of one domain of one split, or of one part of it, in order."""

    def __init__(
        self,
        dataset: Path,
        split: Split,
        domain: str,
        part: str | None = None,
        *,
        fetch: FetchShard | None = None,
        checked: bool = False,
    ) -> None:
        """Open the rows. With `fetch`, shards may be missing until they are read.

        If `checked`, reading raises CorruptData for a corrupt shard. Raises DataError where the dataset has no such
        split, domain or part, or lacks a shard.
        """
        self._folder = _folder_of(dataset, split, domain, part)
        self._fetch = fetch
        self._checked = checked
        index = read_index(self._folder)
        if fetch is None:
            check_files(self._folder, index)
        self._shards = index.shards
        self._ends = list(accumulate(shard.samples for shard in index.shards))
        self._shard_rows = lru_cache(maxsize=2)(self._load_shard)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, row: int) -> Rows:
        """One row: `tokens` (seq_len + 1,), `domain` () and, if scored, `ref_loss`, maybe `ref_entropy` (seq_len,)."""
        if not 0 <= row < len(self):
            raise IndexError(f"{self._folder} has rows 0 to {len(self) - 1}, not {row}")
        return {name: values[0] for name, values in self.rows(row, row + 1).items()}

    def rows(self, start: int, stop: int) -> Rows:
        """A copy of rows `start` to `stop` (excluded), stacked: `tokens` (n, seq_len + 1), `domain` (n,) and so on."""
        if not 0 <= start < stop <= len(self):
            raise IndexError(f"{self._folder} has {len(self)} rows; cannot read rows {start} to {stop}")
        first, last = bisect_right(self._ends, start), bisect_right(self._ends, stop - 1)
        pieces = []
        for number in range(first, last + 1):
            begin = self._ends[number] - self._shards[number].samples
            pieces.append(self._shard_rows(number)[max(0, start - begin) : stop - begin])
        joined = np.concatenate(pieces)
        return {name: np.ascontiguousarray(joined[name]) for name in joined.dtype.names or ()}

    def _load_shard(self, number: int) -> NDArray[np.void]:
        shard = self._shards[number]
        path = self._folder / shard.stored.basename
        if self._fetch is not None and not path.is_file():
            self._fetch(path, shard)
        if shard.zip_data is None:
            content = np.memmap(path, dtype=np.uint8, mode="r")
            self._check(path, content.data, shard)
            return rows_in(path, content, shard)
        packed = path.read_bytes()
        self._check(path, packed, shard)
        return rows_in(path, unpacked(path, packed, shard), shard)

    def _check(self, path: Path, content: bytes | memoryview, shard: Shard) -> None:
        if self._checked:
            require_checksum(path, content, shard.stored)


def _folder_of(dataset: Path, split: Split, domain: str, part: str | None) -> Path:
    splits = read_manifest(dataset).splits
    domains = splits.get(split)
    if domains is None:
        raise DataError(f"{dataset} has no split {split}; it has {', '.join(splits)}")
    if domain not in domains:
        raise DataError(f"{dataset} has no domain {domain} in split {split}; it has {', '.join(domains)}")
    if part is None:
        return dataset / split / domain
    names = [known.name for known in domains[domain].parts]
    if part not in names:
        raise DataError(f"{dataset}/{split}/{domain} has no {part}; it has {', '.join(names)}")
    return dataset / split / domain / part
