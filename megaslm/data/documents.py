"""What readers take and give."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from megaslm.errors import DataError


@dataclass(frozen=True)
class InputFile:
    """A file to read text from."""

    path: Path
    """Where it is."""
    label: str
    """What the manifest calls it."""
    bytes: int
    """Its size when the work was planned."""
    modified_nanoseconds: int
    """When it was last written, likewise."""
    group: str | None = None
    """The group of all its documents; null where the reader decides."""


@dataclass(frozen=True)
class Document:
    """One text."""

    text: str
    """Its content, encodable as UTF-8."""
    group: str
    """Documents of one group go to one split."""
    origin: str
    """The file and the place in it, for messages."""


class InvalidUtf8(DataError):
    """A file is not UTF-8."""


def falls_within(fraction: float, purpose: str, key: str) -> bool:
    """Whether `key` is among the `fraction` of all keys that a hash picks; each `purpose` picks others."""
    return hash_of(purpose, key) < int(fraction * 2**64)


def hash_of(purpose: str, key: str) -> int:
    """A number below 2**64, evenly spread and the same everywhere."""
    digest = hashlib.blake2b(f"{purpose}\0{key}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
