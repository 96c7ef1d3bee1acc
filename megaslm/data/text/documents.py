"""What readers take and give."""

import hashlib
import os
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
    """Changes when it is written: the time of that or, of a remote file, its entity tag."""
    look: str = ""
    """Stays only as long as its content does, whatever is done to the file: times and number of its inode or, of a
    remote file, its entity tag; empty where nothing proves that, and the content has to be read."""
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


def describe(path: Path, label: str, group: str | None = None) -> InputFile:
    """A local file as it is now. Raises DataError where it is not there or the system does not tell."""
    status = status_of(path)
    if status is None:
        raise DataError(f"{path} was there a moment ago and is gone; do not change files meanwhile, and run it again")
    # A program can set the time of the last writing, and so do mv, cp -p, rsync and tar; that of the inode none can.
    look = f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
    return InputFile(str(path), label, status.st_size, str(status.st_mtime_ns), look, group=group)


def status_of(path: Path) -> os.stat_result | None:
    """What the system tells of a file; null where there is none. Raises DataError where the system does not tell."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        # ValueError: no file has a name with NUL or half of a surrogate pair in it.
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be looked at ({error.strerror}); check the path and its permissions") from error


class InvalidUtf8(DataError):
    """A file is not UTF-8."""


def falls_within(fraction: float, purpose: str, key: str) -> bool:
    """Whether `key` is among the `fraction` of all keys that a hash picks; each `purpose` picks others."""
    return fraction == 1 or hash_of(purpose, key) < int(fraction * 2**64)


def hash_of(purpose: str, key: str) -> int:
    """A number below 2**64, evenly spread and the same everywhere."""
    # A key may be half of a surrogate pair, such as a URL that was cut; it is as good as another.
    digest = hashlib.blake2b(f"{purpose}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")
