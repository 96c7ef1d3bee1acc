"""The rows that the bytes of one shard hold."""

from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from megaslm.data.dataset.damage import Damaged
from megaslm.data.dataset.shard_index import CHECKSUM, INDEX, Shard, ShardFile

# A shard begins with its number of rows and the offset of each; all are 32-bit.
_OFFSET_DTYPE = np.dtype("<u4")


def require_checksum(path: Path, content: bytes | memoryview, expected: ShardFile) -> None:
    """Raise Damaged unless `content`, the bytes of `path`, has the checksum that the index states."""
    stated = expected.hashes.get(CHECKSUM)
    if stated is None:
        raise Damaged(path, f"has no {CHECKSUM} in {INDEX}, by which it could be checked")
    digest = xxhash.xxh3_64()
    digest.update(content)
    if digest.hexdigest() != stated:
        raise Damaged(path, f"has the {CHECKSUM} {digest.hexdigest()}, {INDEX} says {stated}")


def unpacked(path: Path, packed: bytes, shard: Shard) -> NDArray[np.uint8]:
    """The bytes of a shard before compression, (n,).

    Raises Damaged where `packed`, the content of `path`, does not unpack to them.
    """
    import pyarrow

    if shard.compression is None or shard.compression.partition(":")[0] != "zstd":
        raise Damaged(path, f"is compressed with {shard.compression} by {INDEX}; expected zstd")
    try:
        data = pyarrow.decompress(packed, shard.raw_data.bytes, codec="zstd")
    except OSError as error:
        raise Damaged(path, f"cannot be unpacked: {error}") from error
    return np.frombuffer(data, dtype=np.uint8)


def rows_in(path: Path, data: NDArray[np.uint8], shard: Shard) -> NDArray[np.void]:
    """The rows of a shard as a structured array (samples,), a view of its bytes `data` (n,).

    Raises Damaged where the bytes, from `path`, are not these rows side by side.
    """
    dtype = shard.row_dtype()
    offsets = data[4 : 4 * (shard.samples + 2)].view(_OFFSET_DTYPE)
    if len(offsets) == shard.samples + 1:
        expected = offsets[0] + np.arange(shard.samples + 1, dtype=np.int64) * dtype.itemsize
        counted = data[:4].view(_OFFSET_DTYPE)[0] == shard.samples
        if counted and expected[-1] == len(data) and np.array_equal(offsets, expected):
            return data[expected[0] :].view(dtype)
    raise Damaged(path, f"does not hold {shard.samples} rows of {dtype.itemsize} bytes")
