"""The records of a stretch of a file: lines, or the documents between separator lines.

A record belongs to the range that contains its first byte, so that ranges with any bounds divide a file's records
without gap or overlap.
"""

import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import zstandard

from megaslm.corpus.compression import NotUnpacked, is_compressed, unpacked, what_it_is
from megaslm.corpus.documents import FileRange
from megaslm.corpus.source_bytes import RangeBytes, ReadLog, buffered, range_bytes
from megaslm.errors import DataError

LONGEST_RECORD_BYTES = 2**30
"""A longer record means that the file is of another kind. It is refused before it fills the memory."""


class Record(NamedTuple):
    """A record's bytes, and its place in words."""

    content: bytes
    place: str


class _Line(NamedTuple):
    content: bytes
    start: int
    place: str


def lines(file_range: FileRange, log: ReadLog) -> Iterator[Record]:
    """The lines that begin in a range and are not blank. At their end, `log` has the range's SHA-256.

    Raises DataError for a corrupt file or a line of more than `LONGEST_RECORD_BYTES`.
    """
    with opened(file_range, 1, log) as (data, plain):
        for line in _lines_from(plain, file_range, 1):
            if line.start >= _stop(file_range):
                break
            if line.start >= file_range.start and not line.content.isspace():
                yield Record(line.content, line.place)
        log.sha256 = data.sha256()


def separated(file_range: FileRange, separator: bytes, log: ReadLog) -> Iterator[Record]:
    """The documents that begin in a range, between lines that equal `separator`, without line ends around them.

    Logs and raises as `lines` does.
    """
    # A separator that ends where the range begins must be seen whole.
    lead_bytes = len(separator) + len(b"\n\r\n")
    with opened(file_range, lead_bytes, log) as (data, plain):
        document: list[_Line] = []
        size = 0
        is_mine = file_range.start == 0
        for line in _lines_from(plain, file_range, lead_bytes):
            if line.content.rstrip(b"\r\n") != separator:
                if is_mine:
                    document.append(line)
                    size += len(line.content)
                    require_reasonable(size, line.place)
                continue
            yield from _joined(document)
            document, size = [], 0
            next_start = line.start + len(line.content)
            is_mine = next_start >= file_range.start
            if next_start >= _stop(file_range):
                break
        yield from _joined(document)
        log.sha256 = data.sha256()


def _joined(document: list[_Line]) -> Iterator[Record]:
    content = b"".join(line.content for line in document).strip(b"\r\n")
    if content:
        yield Record(content, document[0].place)


def _lines_from(plain: io.BufferedIOBase, file_range: FileRange, lead_bytes: int) -> Iterator[_Line]:
    """The lines from `lead_bytes` before a range on. If that position is inside a line, from the next line on."""
    position = max(0, file_range.start - lead_bytes)
    from_the_top = position == 0
    if not from_the_top:
        position += len(_read_line(plain, f"{file_range.file.path}, byte {position}"))
    number = 0
    while True:
        number += 1
        where = f"line {number}" if from_the_top else f"the line at byte {position}"
        place = f"{file_range.file.path}, {where}"
        content = _read_line(plain, place)
        if not content:
            return
        yield _Line(content, position, place)
        position += len(content)


def _read_line(plain: io.BufferedIOBase, place: str) -> bytes:
    content = plain.readline(LONGEST_RECORD_BYTES + 1)
    require_reasonable(len(content), place)
    return content


def require_reasonable(size: int, place: str) -> None:
    """Raise DataError where the bytes of a record, so far, are more than `LONGEST_RECORD_BYTES`."""
    if size > LONGEST_RECORD_BYTES:
        raise DataError(
            f"{place} begins a record of more than {LONGEST_RECORD_BYTES / 2**30:g} GiB; expected lines or documents: "
            "is the file what its source's reader says?"
        )


def _stop(file_range: FileRange) -> int:
    """The position before which the range's records begin. A compressed file unpacks to more bytes than it has."""
    return sys.maxsize if is_compressed(file_range.file.path) else file_range.stop


@contextmanager
def opened(
    file_range: FileRange, lead_bytes: int, log: ReadLog, *, unpack: bool = True
) -> Iterator[tuple[RangeBytes, io.BufferedIOBase]]:
    """The bytes of a range's file from `lead_bytes` before the range on; raw, and unpacked by the file's ending.

    Raises DataError where reading fails: the disk, the permission, the compression.
    """
    path = file_range.file.path
    with range_bytes(file_range, max(0, file_range.start - lead_bytes), log) as data:
        try:
            yield data, unpacked(path, data) if unpack else buffered(data)
        except NotUnpacked as error:
            raise DataError(f"{path}: {error}") from error
        except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise DataError(
                    f"{path} cannot be read ({error.strerror}); check its disk and its permissions"
                ) from error
            found = what_it_is(data.beginning)
            is_named_so = found is None or f"({path[path.rfind('.') :].lower()})" in found
            remedy = (
                "copy it again, or name it as what it is"
                if is_named_so
                else f"by its first bytes it is {found}: give it the ending of that"
            )
            raise DataError(f"{path} is corrupt or not compressed as its name says: {error}; {remedy}") from error
