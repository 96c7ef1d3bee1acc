"""Documents out of records with fields, lines of JSON and rows of parquet alike."""

import json
from decimal import Decimal

from megaslm.config.recipe import Source
from megaslm.data.text.documents import Document
from megaslm.errors import DataError

NO_DOMAIN = "null"
"""What `domains` of a recipe calls documents that have no value in the field of the domain."""


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
