"""Documents, the ranges of files that they are read from, and how they are made of records with fields."""

import hashlib
import json
import os
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from megaslm.config.recipe import Source
from megaslm.errors import DataError

NO_DOMAIN = "null"
"""What `domains` of a recipe calls documents that have no value in the field of the domain."""


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
class FileRange:
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


def document_of(record: dict[str, object], place: str, source: Source) -> Document:
    """The document that a record holds. Raises DataError, with its place, where it holds none.

    One without a group is a group of its own text, as where no field is named for groups.
    """
    text = _field(record, source.text_field, place)
    if not isinstance(text, str):
        raise DataError(f"{place}: field {source.text_field!r} is a {type(text).__name__}; expected a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: character {error.start} of the text is half of a surrogate pair") from error
    group = None if source.group_field is None else _key(record, source.group_field, place)
    domain = None if source.domain_field is None else _domain(record, source.domain_field, place)
    return Document(text, text if group is None else group, place, domain)


def key_of(value: object) -> str | None:
    """The text by which values are told apart; null where there is nothing to tell: null, NaN, blank text, no items.

    A number is itself however it is written, 7 or 7.0: a column of integers becomes one of fractions where a value is
    missing. A list or an object is its items, told apart in the same way, whatever their order in the object.
    """
    key = _key_with_items(value)
    return key if key is None or isinstance(key, str) else json.dumps(key, sort_keys=True)


def _key_with_items(value: object) -> str | list[object] | dict[str, object] | None:
    if isinstance(value, list | tuple):
        items: list[object] = [_key_with_items(item) for item in value]
        return None if all(item is None for item in items) else items
    if isinstance(value, dict):
        fields: dict[str, object] = {name: _key_with_items(item) for name, item in value.items()}
        return None if all(field is None for field in fields.values()) else fields
    if isinstance(value, str):
        return value if value.strip() else None
    # What is not equal to itself is NaN, of whichever type.
    if value is None or value != value:
        return None
    if isinstance(value, Decimal):
        # Not by way of int: Python's own type turns into no text of more than 4,300 digits.
        digits = f"{value:f}"
        return digits.rstrip("0").rstrip(".") if "." in digits else digits
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _domain(record: dict[str, object], name: str, place: str) -> str:
    value = _field(record, name, place)
    return value if isinstance(value, str) else _key(record, name, place) or NO_DOMAIN


def _key(record: dict[str, object], name: str, place: str) -> str | None:
    try:
        return key_of(_field(record, name, place))
    except RecursionError as error:
        raise DataError(f"{place}: field {name!r} is nested too deeply to be compared: name one inside it") from error


def _field(record: dict[str, object], name: str, place: str) -> object:
    """A field, or with dots in its name one of an object in the record; null where that object is."""
    if name in record:
        return record[name]
    outer, _, inner = name.partition(".")
    if inner and outer in record:
        value = record[outer]
        if value is None:
            return None
        if isinstance(value, dict):
            return _field(value, inner, f"{place}, {outer}")
    raise DataError(
        f"{place} has no field {name!r}; it has {', '.join(record)}: set text_field, group_field or domain_field, or "
        "write null where there is no value"
    )
