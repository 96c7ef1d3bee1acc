"""What readers take and give."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from megaslm.errors import DataError


@dataclass(frozen=True)
class InputFile:
    """A file to read text from."""

    path: str
    """Where it is: a local path or a URL."""
    label: str
    """What the manifest calls it."""
    bytes: int
    """Its size when the work was planned."""
    version: str
    """Changes when its content does: the time it was last written or, of a remote file, its entity tag."""
    is_remote: bool = False
    """Whether `path` is a URL."""
    group: str | None = None
    """The group of all its documents; null where the reader decides."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a file: the records (lines, documents, row groups) that begin in it."""

    file: InputFile
    start: int
    """Its first byte."""
    stop: int
    """The byte after its last."""


@dataclass(frozen=True)
class Document:
    """One text."""

    text: str
    """Its content, encodable as UTF-8."""
    group: str
    """Documents of one group go to one split."""
    origin: str
    """The file and the place in it, for messages."""
    domain: str | None = None
    """The value of the field that decides the domain; null where the source does."""


class InvalidUtf8(DataError):
    """A file is not UTF-8."""


def falls_within(fraction: float, purpose: str, key: str) -> bool:
    """Whether `key` is among the `fraction` of all keys that a hash picks; each `purpose` picks others."""
    return fraction == 1 or hash_of(purpose, key) < int(fraction * 2**64)


def hash_of(purpose: str, key: str) -> int:
    """A number below 2**64, evenly spread and the same everywhere."""
    digest = hashlib.blake2b(f"{purpose}\0{key}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def sha256_of_stretch(path: Path, start: int, stop: int) -> str:
    """SHA-256 of the bytes `start` to `stop` (excluded) of a file."""
    digest, left = hashlib.sha256(), stop - start
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(min(left, 2**20)):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()
