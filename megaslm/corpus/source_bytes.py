"""The bytes of an input file, read forward once. Size and hash are checked on the way."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from megaslm.corpus.documents import FileRange, InputFile
from megaslm.errors import DataError

_BUFFER_BYTES = 2**20
_BEGINNING_BYTES = 8


@dataclass
class ReadLog:
    """The record of the ranges that were read."""

    input_bytes: int = 0
    """Bytes read so far over all ranges, before unpacking."""
    sha256: str = ""
    """Hash of the bytes of the range that was read last."""


class RangeBytes(io.RawIOBase):
    """A file from near the start of a range on. It has the SHA-256 of the range once the last byte was read."""

    def __init__(self, file: BinaryIO, file_range: FileRange, start: int, log: ReadLog) -> None:
        """`file` is at byte `start`, at or before the start of the range."""
        self._file = file
        self._range = file_range
        self._position = start
        self._log = log
        self._sha256 = hashlib.sha256()
        self.beginning = b""
        """The first bytes of the file, once read; empty for a range from the middle."""

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        """Read the next bytes; 0 at the file's end."""
        view = memoryview(buffer).cast("B")
        count = cast(io.RawIOBase, self._file).readinto(view) or 0
        if self._position == 0:
            self.beginning = bytes(view[: min(count, _BEGINNING_BYTES)])
        begin = max(0, self._range.start - self._position)
        end = min(count, self._range.stop - self._position)
        if begin < end:
            self._sha256.update(view[begin:end])
            self._log.input_bytes += end - begin
        self._position += count
        return count

    def sha256(self) -> str:
        """The hash of the whole range. Reads the rest of it first. Raises DataError where the file is shorter."""
        buffer = bytearray(_BUFFER_BYTES)
        while self._position < self._range.stop:
            if self.readinto(buffer) == 0:
                raise DataError(
                    f"{self._range.file.path} ends at byte {self._position}; it had {self._range.file.bytes} bytes "
                    "when the work was planned: do not change files while they are prepared, and run it again"
                )
        return self._sha256.hexdigest()


@contextmanager
def range_bytes(file_range: FileRange, start: int, log: ReadLog) -> Iterator[RangeBytes]:
    """The bytes of a range's file from `start` on. Raises DataError where the file has changed since the planning."""
    with open_input(file_range.file) as file:
        file.seek(start)
        yield RangeBytes(file, file_range, start, log)


@contextmanager
def open_input(file: InputFile) -> Iterator[BinaryIO]:
    """A seekable file. Raises DataError where it cannot be read or has changed."""
    if file.is_remote:
        from megaslm.storage import remote

        with remote.open_remote(file.path, file.bytes) as content:
            yield cast(BinaryIO, content)
        remote.require_unchanged(remote.RemoteObject(file.path, file.bytes, file.version))
        return
    _require_unchanged(file)
    try:
        local = Path(file.path).open("rb", buffering=0)  # noqa: SIM115 (only errors of opening are translated)
    except OSError as error:
        raise DataError(f"{file.path} cannot be opened ({error.strerror}); check its permissions") from error
    with local:
        yield cast(BinaryIO, local)
    _require_unchanged(file)


def _require_unchanged(file: InputFile) -> None:
    try:
        status = Path(file.path).stat()
    except OSError as error:
        raise DataError(f"{file.path}: {error.strerror}; it was there when the work was planned") from error
    if (status.st_size, str(status.st_mtime_ns)) != (file.bytes, file.version):
        raise DataError(
            f"{file.path} was written while it was prepared (planned with {file.bytes} bytes, now {status.st_size}); "
            "do not change files meanwhile, and run it again"
        )


def sha256_of_range(file_range: FileRange) -> str:
    """SHA-256 of the bytes of a range. Reads them. Raises DataError where that fails, or the file has changed."""
    with range_bytes(file_range, file_range.start, ReadLog()) as data:
        return data.sha256()


def buffered(data: io.RawIOBase) -> io.BufferedReader:
    """Adds a buffer of 1 MiB, for reading lines."""
    return io.BufferedReader(data, _BUFFER_BYTES)
