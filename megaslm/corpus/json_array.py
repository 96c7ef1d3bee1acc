"""The records of a JSON file that is one array of objects. The file is read forward, one object at a time."""

import io
import re
from collections.abc import Iterator

from megaslm.corpus.compression import what_it_is
from megaslm.corpus.documents import FileRange
from megaslm.corpus.records import Record, opened, require_reasonable
from megaslm.corpus.source_bytes import ReadLog
from megaslm.errors import DataError

# Not ijson (3.6). Its C backend makes a question mark of half a surrogate pair, which is refused here. Its Python
# backend is slower than this file. Neither names the record of an error, nor limits its length.
_STEP_BYTES = 2**20
_BLANKS = b" \t\r\n"
# A whole string, a bracket, or the beginning of a string whose end has not been read yet.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]"]', re.DOTALL)


def array_records(file_range: FileRange, log: ReadLog) -> Iterator[Record]:
    """The objects of an array, as bytes. The range is the whole file. At their end, `log` has its SHA-256.

    Raises DataError where the file is corrupt or not an array of objects, and for an object of more than
    `LONGEST_RECORD_BYTES`.
    """
    with opened(file_range, 0, log) as (data, plain):
        yield from _Array(plain, file_range.file.path).records()
        log.sha256 = data.sha256()


class _Array:
    def __init__(self, plain: io.BufferedIOBase, path: str) -> None:
        self._plain = plain
        self._path = path
        self._bytes = b""
        self._start = 0  # of what has not been returned yet, in `_bytes`

    def records(self) -> Iterator[Record]:
        if (sign := self._next_sign()) != b"[":
            kind = what_it_is(self._bytes)
            remedy = (
                "set reader: jsonl where each line is a record, else write the records as one array"
                if kind is None
                else f"by its first bytes it is {kind}: give it the ending of that"
            )
            what = f"begins with {_named(sign)}" if sign else "is empty"
            raise DataError(f"{self._path} {what}; expected [, the beginning of an array: {remedy}")
        number, place, sign = 0, "", self._next_sign()
        while sign != b"]":
            number += 1
            if number > 1:
                if sign != b",":
                    raise DataError(f"{place} is followed by {_named(sign)}; expected a comma or ]")
                sign = self._next_sign()
            place = f"{self._path}, record {number}"
            if sign != b"{":
                raise DataError(f"{place} begins with {_named(sign)}; expected {{, the beginning of an object")
            self._start -= 1
            yield Record(self._object(place), place)
            sign = self._next_sign()
        if sign := self._next_sign():
            raise DataError(f"{self._path}: the array is followed by {_named(sign)}; expected the end of the file")

    def _object(self, place: str) -> bytes:
        """The object that begins at `_start`. Its end is found by its brackets; whether it is JSON is not."""
        depth, seen = 0, 0
        while True:
            for token in _TOKEN.finditer(self._bytes, self._start + seen):
                if token[0] == b'"':
                    break
                seen = token.end() - self._start
                depth += (token[0] in (b"{", b"[")) - (token[0] in (b"}", b"]"))
                if depth == 0:
                    begin, self._start = self._start, token.end()
                    return self._bytes[begin : self._start]
            if not self._read_on(place):
                raise DataError(f"{place}: the file ends in the middle of it; copy the file again")

    def _next_sign(self) -> bytes:
        """The next byte that is not blank; empty at the end of the file."""
        while True:
            while self._start < len(self._bytes):
                sign = self._bytes[self._start : self._start + 1]
                self._start += 1
                if sign not in _BLANKS:
                    return sign
            if not self._read_on(self._path):
                return b""

    def _read_on(self, place: str) -> bool:
        """Read at least as much again as is at hand, so that a long object is not searched too often."""
        rest = self._bytes[self._start :]
        require_reasonable(len(rest), place)
        more = self._plain.read(max(_STEP_BYTES, len(rest)))
        self._bytes, self._start = rest + more, 0
        return bool(more)


def _named(sign: bytes) -> str:
    if not sign:
        return "the end of the file"
    return repr(sign.decode()) if sign.isascii() else f"the byte 0x{sign.hex()}"
