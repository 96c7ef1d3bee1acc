"""Compressed files, which can only be read from their beginning, and the format of a file by its first bytes."""

import gzip
import io
from typing import cast

import zstandard

from megaslm.corpus.source_bytes import buffered

COMPRESSED = (".gz", ".zst")
"""Endings of the supported compressions."""
_LARGEST_WINDOW_BYTES = 2**31
"""The window of `zstd --long=31`, the largest that programs write. Unpacking holds this much in memory."""
_STEP_BYTES = 2**14
"""Compressed bytes per step. At the highest compression they unpack to 0.5 GiB."""
_LONGEST_HEADER_BYTES = 18
_ZSTD = b"\x28\xb5\x2f\xfd"
_HAS_NO_WINDOW = 0b0010_0000
_HAS_DICTIONARY = 0b0000_0011
_BEGINNINGS = {
    b"\x1f\x8b": "gzip (.gz)",
    _ZSTD: "zstd (.zst)",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7z",
    b"PAR1": "parquet",
}


def is_compressed(path: str) -> bool:
    """Whether a file's name says that it is compressed."""
    return path.lower().endswith(COMPRESSED)


def unpacked(path: str, data: io.RawIOBase) -> io.BufferedIOBase:
    """The unpacked bytes of a file, by the ending of its name. Without such an ending, the bytes themselves.

    Reading raises OSError, EOFError, zlib.error or zstandard.ZstdError where the bytes do not match the ending or end
    too early. The memory taken is the window of a zst file, 2 GiB at most.
    """
    if path.lower().endswith(".gz"):
        return cast(io.BufferedIOBase, gzip.GzipFile(fileobj=buffered(data)))
    if path.lower().endswith(".zst"):
        return buffered(_ZstdFrames(data))
    return buffered(data)


def what_it_is(beginning: bytes) -> str | None:
    """The format of a file by its first bytes, None if it is unknown."""
    return next((name for magic, name in _BEGINNINGS.items() if beginning.startswith(magic)), None)


class NotUnpacked(zstandard.ZstdError):
    """An intact frame of an unsupported kind. The message names the kind and how to pack the file anew."""


class _ZstdFrames(io.RawIOBase):
    """All frames of a file, to the last byte. The library's own readers do not notice a truncated file."""

    def __init__(self, data: io.RawIOBase) -> None:
        self._data = data
        self._library = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW_BYTES)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._header = b""
        self._packed = b""
        self._plain = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        while not self._plain:
            packed = self._packed or self._data.read(_STEP_BYTES) or b""
            if not packed:
                if self._frame is not None:
                    raise EOFError("the file ends in the middle of a frame")
                return 0
            self._plain = memoryview(self._unpack(packed))
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._plain))
        view[:count] = self._plain[:count]
        self._plain = self._plain[count:]
        return count

    def _unpack(self, packed: bytes) -> bytes:
        if self._frame is None:
            self._frame, self._header = self._library.decompressobj(), b""
        if len(self._header) < _LONGEST_HEADER_BYTES:
            self._header += packed[: _LONGEST_HEADER_BYTES - len(self._header)]
        try:
            plain = self._frame.decompress(packed)
        except zstandard.ZstdError as error:
            raise _explained(error, self._header) from error
        self._packed = b""
        if self._frame.eof:
            self._packed = self._frame.unused_data
            self._frame = None
        return plain


def _explained(error: zstandard.ZstdError, header: bytes) -> zstandard.ZstdError:
    """The same error or, for an intact frame of an unsupported kind, a NotUnpacked that explains it."""
    if not header.startswith(_ZSTD) or len(header) < 6:
        return error
    if header[4] & _HAS_DICTIONARY:
        return NotUnpacked("it was packed with a dictionary, which is not read; pack the file anew without `zstd -D`")
    if header[4] & _HAS_NO_WINDOW:
        return error
    # RFC 8878, 3.1.1.1.2: five bits of exponent, three of mantissa.
    base = 1 << (10 + (header[5] >> 3))
    window_bytes = base + base // 8 * (header[5] & 7)
    if window_bytes <= _LARGEST_WINDOW_BYTES:
        return error
    return NotUnpacked(
        f"its window is {window_bytes / 2**30:g} GiB, and {_LARGEST_WINDOW_BYTES / 2**30:g} GiB is the most that is "
        "read; pack the file anew with `zstd --long=31` or less"
    )
