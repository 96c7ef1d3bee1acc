"""A remote file reads as a local one does, and asks for no more than it must."""

import gzip
import io
import random

import pyarrow
import pytest
from pyarrow import parquet

from megaslm.storage.remote import RemoteFile
from tests.messages import Says

CONTENT = random.Random(0).randbytes(300_000)
BLOCK_BYTES = 10_000


class Store:
    """A content that remembers which ranges were asked for."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.asked: list[tuple[int, int]] = []

    def read_range(self, start: int, stop: int) -> bytes:
        assert 0 <= start < stop <= len(self.content)
        self.asked.append((start, stop))
        return self.content[start:stop]

    def open(self, block_bytes: int = BLOCK_BYTES) -> io.BufferedReader:
        return io.BufferedReader(RemoteFile("x", len(self.content), self.read_range, block_bytes), 1000)

    @property
    def asked_bytes(self) -> int:
        return sum(stop - start for start, stop in self.asked)


def test_reading_forward_asks_for_each_byte_once_in_blocks() -> None:
    store = Store(CONTENT)
    with store.open() as file:
        pieces = iter(lambda: file.read(777), b"")
        assert b"".join(pieces) == CONTENT
    assert store.asked == [(start, start + BLOCK_BYTES) for start in range(0, 300_000, BLOCK_BYTES)]


def test_lines_are_those_of_the_content() -> None:
    content = b"\n".join(b"x" * (number % 3000) for number in range(200)) + b"\nlast, without an end"
    with Store(content).open() as file, io.BytesIO(content) as expected:
        assert list(file) == list(expected)


def test_seeks_read_as_a_local_file_does(says: Says) -> None:
    places = random.Random(1)
    with Store(CONTENT).open() as file, io.BytesIO(CONTENT) as local:
        for _ in range(500):
            offset, whence = places.choice(
                [(places.randrange(310_000), io.SEEK_SET), (-places.randrange(300_000), io.SEEK_END)]
            )
            size = places.choice([1, 50, 5_000, 25_000])
            assert file.seek(offset, whence) == local.seek(offset, whence)
            assert file.read(size) == local.read(size)
            assert file.tell() == local.tell()
    with pytest.raises(ValueError) as refused:
        Store(CONTENT).open().seek(-1)
    says(refused, "-1")


def test_a_jump_moves_little_and_reading_on_moves_blocks() -> None:
    store = Store(random.Random(2).randbytes(2_000_000))
    with store.open(block_bytes=500_000) as file:
        file.seek(1_000_000)
        file.read(10)
        assert store.asked == [(1_000_000, 1_000_000 + 64 * 2**10)]
        file.read(200_000)
        assert store.asked[1:] == [(1_000_000 + 64 * 2**10, 1_000_000 + 64 * 2**10 + 500_000)]


def test_gzip_reads_through_it() -> None:
    text = b"some text\n" * 50_000
    with Store(gzip.compress(text)).open(block_bytes=300) as file, gzip.open(file) as lines:
        assert lines.read() == text


def test_a_row_group_of_parquet_moves_that_row_group() -> None:
    rows = 4_000
    table = pyarrow.table({"text": [random.Random(row).randbytes(400).hex() for row in range(rows)]})
    with io.BytesIO() as written:
        parquet.write_table(table, written, row_group_size=rows // 10, compression="none", use_dictionary=False)
        store = Store(written.getvalue())
    with store.open() as file, parquet.ParquetFile(file) as source:
        size = source.metadata.row_group(3).total_byte_size
        footer = store.asked_bytes
        assert source.read_row_group(3) == table.slice(3 * rows // 10, rows // 10)
        assert size <= store.asked_bytes - footer <= size + 64 * 2**10 + BLOCK_BYTES
    assert footer < 150_000 < 0.1 * len(store.content)


def test_what_the_store_raises_passes_through_pyarrow() -> None:
    class Gone(Exception):
        pass

    def read_range(start: int, stop: int) -> bytes:
        raise Gone(f"bytes {start} to {stop}")

    with pytest.raises(Gone, match="bytes"):
        parquet.ParquetFile(io.BufferedReader(RemoteFile("x", 100_000, read_range, BLOCK_BYTES)))
