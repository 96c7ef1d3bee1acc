"""A remote file as Python's own file objects are: read forward in blocks, and anywhere after a seek."""

import io
from collections.abc import Callable

_AFTER_A_JUMP_BYTES = 64 * 2**10

ReadRange = Callable[[int, int], bytes]
"""Called with the first byte and the byte after the last; gives exactly those."""


class RemoteFile(io.RawIOBase):
    """Keeps one block: whoever reads forward gets whole ones, whoever jumps gets what was asked for and no more.

    So a reader of lines makes one request a block, and a reader of some columns of a parquet file moves those columns.
    """

    def __init__(self, name: str, size_bytes: int, read_range: ReadRange, block_bytes: int) -> None:
        """`read_range` may raise; what it raises passes through."""
        self.name = name
        self._size_bytes = size_bytes
        self._read_range = read_range
        self._block_bytes = block_bytes
        self._block = b""
        self._block_start = 0
        self._position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Where the next byte comes from."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go there; nothing is read yet."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        if origin + offset < 0:
            raise ValueError(f"{self.name}: cannot seek to byte {origin + offset}")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        """Fill `buffer`, less only at the file's end. Raises what reading a range does."""
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size_bytes - self._position))
        filled = 0
        while filled < wanted:
            there = self._from_here(wanted - filled)
            taken = there[: wanted - filled]
            view[filled : filled + len(taken)] = taken
            filled += len(taken)
            self._position += len(taken)
        return filled

    def close(self) -> None:
        """Let go of the block."""
        self._block = b""
        super().close()

    def _from_here(self, wanted: int) -> memoryview:
        """At least one byte from the position on, `wanted` of them if a block holds as many."""
        block_stop = self._block_start + len(self._block)
        if not self._block_start <= self._position < block_stop:
            reads_on = self._position == block_stop
            size = self._block_bytes if reads_on else min(self._block_bytes, max(wanted, _AFTER_A_JUMP_BYTES))
            stop = min(self._position + size, self._size_bytes)
            # The former block goes first: two of them would need twice the memory.
            self._block = b""
            self._block = self._read_range(self._position, stop)
            self._block_start = self._position
        return memoryview(self._block)[self._position - self._block_start :]
