"""The bytes of a shard are its rows, or refused with what is wrong."""

from pathlib import Path

import numpy as np
import pyarrow
import pytest

from megaslm.dataset.index import CHECKSUM, Shard, read_index
from megaslm.dataset.rows import RowReader, rows_in, unpacked
from megaslm.errors import CorruptData
from tests.messages import Says
from tests.small_shards import FORMATS, make, tokens_of, write


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Path, Shard]:
    write(tmp_path, 0, FORMATS["compressed"])
    shard = read_index(tmp_path / "part-00000").shards[0]
    return tmp_path / "part-00000" / shard.stored.basename, shard


def test_what_was_compressed_is_unpacked(packed: tuple[Path, Shard]) -> None:
    path, shard = packed
    rows = rows_in(path, unpacked(path, path.read_bytes(), shard), shard)
    assert np.array_equal(rows["tokens"], tokens_of(0)[: shard.samples])


def test_what_is_not_zstd_is_refused(packed: tuple[Path, Shard], says: Says) -> None:
    path, shard = packed
    with pytest.raises(CorruptData) as refused:
        unpacked(path, path.read_bytes()[1:], shard)
    says(refused, path)
    with pytest.raises(CorruptData) as refused:
        unpacked(path, path.read_bytes(), shard.model_copy(update={"compression": "gz"}))
    says(refused, path, "index.json", "zstd")


@pytest.mark.parametrize("change", ["longer", "shorter", "other count", "other offset", "empty"])
def test_bytes_of_other_rows_are_refused(packed: tuple[Path, Shard], change: str, says: Says) -> None:
    path, shard = packed
    content = bytearray(pyarrow.decompress(path.read_bytes(), shard.raw_data.bytes, codec="zstd", asbytes=True))
    match change:
        case "longer":
            content += b"\0"
        case "shorter":
            del content[-1]
        case "other count":
            content[0] ^= 1
        case "other offset":
            content[9] ^= 1
        case "empty":
            content.clear()
    with pytest.raises(CorruptData) as refused:
        rows_in(path, np.frombuffer(bytes(content), dtype=np.uint8), shard)
    says(refused, f"{shard.samples} rows", "28 bytes")


def test_a_packed_shard_of_other_rows_is_found_by_its_checksum(tmp_path: Path) -> None:
    """Also where it can be unpacked, and its rows are as many."""
    make(tmp_path, FORMATS["compressed"])
    folder = tmp_path / "train" / "a"
    shard = read_index(folder).shards[0]
    path = folder / shard.stored.basename
    content = bytearray(pyarrow.decompress(path.read_bytes(), shard.raw_data.bytes, codec="zstd", asbytes=True))
    content[-1] ^= 1
    path.write_bytes(pyarrow.compress(bytes(content), codec="zstd", asbytes=True))

    def read(*, checked: bool) -> None:
        # Where shards may be fetched, their sizes are not looked at before.
        RowReader(tmp_path, "train", "a", fetch=lambda *_: None, checked=checked).rows(0, 1)

    read(checked=False)
    with pytest.raises(CorruptData, match=CHECKSUM):
        read(checked=True)
