"""The text of a record: one field, several fields in a template, or a conversation."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple, cast

from megaslm.config.recipe import Source
from megaslm.config.template import template_parts
from megaslm.errors import DataError

FIELD_SETTINGS = "text_field, template, messages_field, group_field or domain_field"
"""The settings of a source that name fields."""
MESSAGE_KEYS = (("role", "content"), ("from", "value"))
"""The keys of a message's role and content in the two published forms of conversations."""
_CALLS = ("tool_calls", "function_call")
"""The keys of what a message holds besides its content."""
_ROLES = {"human": "user", "gpt": "assistant"}
"""The usual names for the roles of the second form."""


class Message(NamedTuple):
    """One message of a conversation."""

    role: str
    """Who writes it; `human` and `gpt` are read as `user` and `assistant`."""
    content: str


def text_of(record: Mapping[str, object], place: str, source: Source) -> str:
    """The text of a record. Raises DataError, with the record's place, where there is none."""
    if source.messages_field is not None:
        return as_lines(messages_of(record, place, source.messages_field))
    if source.template is not None:
        return "".join(
            part.literal + ("" if part.field is None else _string_in(record, part.field, place))
            for part in template_parts(source.template)
        )
    return _string_in(record, source.text_field, place)


def field_of(record: Mapping[str, object], name: str, place: str, *, is_text: bool = False) -> object:
    """A field. Dots in the name lead into objects in the record; None where such an object is null.

    `is_text`: whether the field must have a value, for the message. Raises DataError where the record lacks the field.
    """
    if name in record:
        return record[name]
    outer, _, inner = name.partition(".")
    if inner and outer in record:
        value = record[outer]
        if value is None:
            return None
        if isinstance(value, dict):
            return field_of(value, inner, f"{place}, {outer}", is_text=is_text)
    remedy = "leave the record out of the file" if is_text else "write null where there is no value"
    raise DataError(f"{place} has no field {name!r}; it has {', '.join(record)}: set {FIELD_SETTINGS}, or {remedy}")


def _string_in(record: Mapping[str, object], name: str, place: str) -> str:
    return _string(field_of(record, name, place, is_text=True), f"{place}: field {name!r}")


def _string(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"{what} is {_named(value)}; expected a string: correct the record, or leave it out of the file"
        )
    return value


def messages_of(record: Mapping[str, object], place: str, name: str) -> tuple[Message, ...]:
    """The conversation in the field `name`. Raises DataError, with the record's place, where there is none."""
    messages, what = field_of(record, name, place, is_text=True), f"{place}: field {name!r}"
    if not isinstance(messages, list):
        raise DataError(f"{what} is {_named(messages)}; expected a list of messages")
    if not messages:
        raise DataError(f"{what} has no messages; leave the record out of the file")
    return tuple(_message(message, f"{what}, message {number}") for number, message in enumerate(messages, start=1))


def as_lines(messages: Sequence[Message]) -> str:
    """Each message below a line with its role, a blank line between two of them."""
    return "\n\n".join(f"{message.role}:\n{message.content}" for message in messages)


def _message(message: object, what: str) -> Message:
    expected = " or ".join(f"{role} and {content}" for role, content in MESSAGE_KEYS)
    if not isinstance(message, dict):
        raise DataError(f"{what} is {_named(message)}; expected an object with {expected}")
    if called := next((key for key in _CALLS if message.get(key)), None):
        raise DataError(
            f"{what} has {called}, which would be lost: only its content becomes text; write the calls into the "
            "content, or leave the record out of the file"
        )
    keys = next((keys for keys in MESSAGE_KEYS if set(keys) <= set(message)), None)
    if keys is None:
        raise DataError(f"{what} has {', '.join(cast(dict[str, object], message)) or 'no fields'}; expected {expected}")
    role, content = (_string(message[key], f"{what}: {key}") for key in keys)
    return Message(_ROLES.get(role, role), content)


def _named(value: object) -> str:
    """The type of a value in JSON's words; of parquet's other types, Python's."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float() | Decimal():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return f"of type {type(value).__name__}"
