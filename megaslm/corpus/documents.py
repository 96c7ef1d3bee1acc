"""Documents, the ranges of files that they are read from, and how records with fields become documents."""

import hashlib
import json
import os
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from megaslm.config.recipe import Source
from megaslm.corpus.record_text import Field, Message, as_lines, field_of, messages_of, text_of
from megaslm.errors import DataError

NO_DOMAIN = "null"
"""The key in a recipe's `domains` for documents without a value in the domain field."""


@dataclass(frozen=True)
class InputFile:
    """A file to read text from."""

    path: str
    """A local path or a URL."""
    label: str
    """Its name in the manifest."""
    bytes: int
    """Its size when the work was planned."""
    version: str
    """Changes when the file is written: its modification time or, for a remote file, its entity tag."""
    look: str = ""
    """Changes whenever the content changes: times and number of its inode or, for a remote file, its entity tag.
    Empty if nothing guarantees this, so that the content must be read."""
    is_remote: bool = False
    """Whether `path` is a URL."""
    group: str | None = None
    """The group of all its documents; None if the reader decides."""


@dataclass(frozen=True)
class FileRange:
    """A stretch of a file. It contains the records (lines, documents, row groups) that begin in it."""

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
    location: str
    """The file and the position in it, for messages."""
    domain: str | None = None
    """The value of the domain field; None if the source determines the domain."""
    messages: tuple[Message, ...] = ()
    """The conversation, if its source has a chat_format. Then `text`, by which documents are filtered and divided, is
    not the text of the rows."""


def describe(path: Path, label: str, group: str | None = None) -> InputFile:
    """A local file as it is now. Raises DataError where it is missing or its status cannot be read."""
    status = status_of(path)
    if status is None:
        raise DataError(f"{path} has disappeared since a moment ago; do not change files meanwhile, and run it again")
    # Programs such as mv, cp -p, rsync and tar set the modification time. None can set the inode's change time.
    look = f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
    return InputFile(str(path), label, status.st_size, str(status.st_mtime_ns), look, group=group)


def status_of(path: Path) -> os.stat_result | None:
    """The status of a file, None if it is missing. Raises DataError where the status cannot be read."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        # ValueError: a file name cannot hold NUL or half of a surrogate pair.
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be examined ({error.strerror}); check the path and its permissions") from error


class InvalidUtf8(DataError):
    """A file that is not UTF-8."""


def falls_within(fraction: float, purpose: str, key: str) -> bool:
    """Whether a hash puts `key` into the chosen `fraction` of all keys. Each `purpose` chooses other keys."""
    return fraction == 1 or hash_of(purpose, key) < int(fraction * 2**64)


def hash_of(purpose: str, key: str) -> int:
    """A hash below 2**64, uniform and the same on every machine."""
    # A key may hold half of a surrogate pair, such as a truncated URL. That is allowed.
    digest = hashlib.blake2b(f"{purpose}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def document_of(record: dict[str, object], place: str, source: Source) -> Document:
    """The document in a record. Raises DataError, with the record's place, where there is none, and NoSuchField.

    Without a value in the group field, or without a group field, its text is its group.
    """
    messages: tuple[Message, ...] = ()
    if source.chat_format is not None and source.messages_field is not None:
        messages = messages_of(record, place, source.messages_field)
    text = as_lines(messages) if messages else text_of(record, place, source)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: character {error.start} of the text is half of a surrogate pair") from error
    group = domain = None
    if source.group_field is not None:
        group = _key(record, Field("group_field", source.group_field, source.group_field), place)
    if source.domain_field is not None:
        domain = _domain(record, Field("domain_field", source.domain_field, source.domain_field), place)
    return Document(text, text if group is None else group, place, domain, messages)


def key_of(value: object) -> str | None:
    """A text that is equal for equal values. None for an empty value: null, NaN, blank text, no items.

    7 and 7.0 are the same number: a column of integers becomes one of floats where a value is missing. A list or an
    object is compared by its items, in the same way. The order of an object's fields does not matter.
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
    # NaN of any type is not equal to itself.
    if value is None or value != value:
        return None
    if isinstance(value, Decimal):
        # Not through int: Python refuses to convert an int of more than 4,300 digits to text.
        digits = f"{value:f}"
        return digits.rstrip("0").rstrip(".") if "." in digits else digits
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _domain(record: dict[str, object], field: Field, place: str) -> str:
    value = field_of(record, field, place)
    return value if isinstance(value, str) else _key(record, field, place) or NO_DOMAIN


def _key(record: dict[str, object], field: Field, place: str) -> str | None:
    try:
        return key_of(field_of(record, field, place))
    except RecursionError as error:
        raise DataError(
            f"{place}: field {field.name!r} is nested too deeply to be compared: name one inside it"
        ) from error
