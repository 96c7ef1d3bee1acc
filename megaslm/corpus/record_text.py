"""The text of a record: one field, several fields in a template, or a conversation."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple, cast

from megaslm.config.recipe import Source
from megaslm.config.template import template_parts
from megaslm.errors import DataError

MESSAGE_KEYS = (("role", "content"), ("from", "value"))
"""The keys of a message's role and content in the two published forms of conversations."""
_CALLS = ("tool_calls", "function_call")
"""The keys of what a message holds besides its content."""
_ROLES = {"human": "user", "gpt": "assistant"}
"""The usual names for the roles of the second form."""


class Field(NamedTuple):
    """A field that a setting of a source names."""

    key: str
    """The setting: text_field, template, messages_field, group_field or domain_field."""
    value: str
    """Its value: a template holds more than the name."""
    name: str
    """The field's name. Dots in it lead into objects in the record."""


class NoSuchField(DataError):
    """Records lack a field that a setting of their source names."""

    def __init__(self, field: Field, finding: str, otherwise: str = "") -> None:
        """`finding`: where there is no such field, and which there are. `otherwise`: what else the user can do."""
        super().__init__(f"{field.key} = {field.value}: {finding}")
        self.field, self.finding, self.otherwise = field, finding, otherwise

    def of_source(self, number: int, origin: str | None = None) -> DataError:
        """The error as its user reads it: of the recipe's source `number`, set at `origin`."""
        key, value, _ = self.field
        place = "" if origin is None else f" ({origin})"
        instead = ", or set template or messages_field" if key == "text_field" else ""
        return DataError(
            f"sources.{number}.{key} = {value}{place}: {self.finding}: name a field that all records "
            f"have{instead}{self.otherwise}"
        )

    def of_one_record(self) -> "NoSuchField":
        """The error where earlier records of the file have the field."""
        is_text = self.field.key not in ("group_field", "domain_field")
        remedy = "leave the record out of the file" if is_text else "write null into the record"
        return NoSuchField(self.field, self.finding, f", or {remedy}")


class Message(NamedTuple):
    """One message of a conversation."""

    role: str
    """Who writes it; `human` and `gpt` are read as `user` and `assistant`."""
    content: str


def fields_of(source: Source) -> Iterator[Field]:
    """The fields that the settings of a source name."""
    if source.template is not None:
        shown = repr(source.template)
        yield from (Field("template", shown, name) for name in source.text_fields)
    else:
        key = "text_field" if source.messages_field is None else "messages_field"
        yield from (Field(key, name, name) for name in source.text_fields)
    for key in ("group_field", "domain_field"):
        name = getattr(source, key)
        if name is not None:
            yield Field(key, name, name)


def text_of(record: Mapping[str, object], place: str, source: Source) -> str:
    """The text of a record. Raises DataError, with the record's place, where there is none."""
    if source.messages_field is not None:
        return as_lines(messages_of(record, place, source.messages_field))
    if source.template is not None:
        key, shown = "template", repr(source.template)
        return "".join(
            part.literal + ("" if part.field is None else _string_in(record, Field(key, shown, part.field), place))
            for part in template_parts(source.template)
        )
    return _string_in(record, Field("text_field", source.text_field, source.text_field), place)


def field_of(record: Mapping[str, object], field: Field, place: str) -> object:
    """The value of a field; None where an object that its name leads into is null.

    Raises NoSuchField where the record lacks the field.
    """
    name = field.name
    while name not in record:
        outer, _, inner = name.partition(".")
        within = record[outer] if inner and outer in record else ()
        if within is None:
            return None
        if not isinstance(within, dict):
            raise NoSuchField(field, lacking(field, name, place, record))
        record, name, place = within, inner, f"{place}, {outer}"
    return record[name]


def lacking(field: Field, name: str, place: str, there: Iterable[str]) -> str:
    """What a place has instead of `name`, a part of the field's name."""
    what = "no such field" if name == field.value else f"no field {name!r}"
    return f"{what} in {place}; it has {', '.join(there) or 'none'}"


def _string_in(record: Mapping[str, object], field: Field, place: str) -> str:
    return _string(field_of(record, field, place), f"{place}: field {field.name!r}")


def _string(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"{what} is {_named(value)}; expected a string: correct the record, or leave it out of the file"
        )
    return value


def messages_of(record: Mapping[str, object], place: str, name: str) -> tuple[Message, ...]:
    """The conversation in the field `name`. Raises DataError, with the record's place, where there is none."""
    messages = field_of(record, Field("messages_field", name, name), place)
    what = f"{place}: field {name!r}"
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
