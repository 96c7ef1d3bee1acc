"""The problems of a configuration, in the words of the one who wrote it: key, value, what is allowed, and the line."""

import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from megaslm.config.layers import Layers
from megaslm.config.section import REMEDY, is_secret_name, is_url_with_credentials
from megaslm.config.source import KeyPath, dotted_key, to_yaml

LONGEST_SHOWN_VALUE = 60


@dataclass(frozen=True)
class SchemaNode:
    """A place in a schema: the type of its value, and the limits on it."""

    annotation: Any
    limits: tuple[object, ...] = ()

    def children(self) -> dict[str, "SchemaNode"]:
        """The keys of the sections that may stand here; empty where no section may."""
        return {
            name: SchemaNode(info.annotation, tuple(info.metadata))
            for option in self.options()
            if isinstance(option.annotation, type) and issubclass(option.annotation, BaseModel)
            for name, info in option.annotation.model_fields.items()
        }

    def options(self) -> list["SchemaNode"]:
        """The alternative types of the value, null included."""
        if get_origin(self.annotation) is Annotated:
            inner, *limits = get_args(self.annotation)
            return SchemaNode(inner, (*self.limits, *_flattened(limits))).options()
        if get_origin(self.annotation) in (Union, types.UnionType):
            return [leaf for arg in get_args(self.annotation) for leaf in SchemaNode(arg, self.limits).options()]
        return [self]

    def follow(self, location: Sequence[str | int]) -> tuple[KeyPath, "SchemaNode"]:
        """Follow pydantic's location of an error. The names of union members in it are not keys, and are left out."""
        path: list[str | int] = []
        node = self
        for depth, part in enumerate(location):
            child = node._child(part)
            if child is not None:
                path.append(part)
                node = child
            elif depth == len(location) - 1 and node.children():
                return (*path, part), SchemaNode(Any)
        return tuple(path), node

    def takes_only_numbers(self) -> bool:
        """Whether the value must be a number or null."""
        kinds = {option.annotation for option in self.options()} - {type(None)}
        return bool(kinds) and kinds <= {int, float, Decimal}

    def _child(self, part: str | int) -> "SchemaNode | None":
        if part in (children := self.children()):
            return children[str(part)]
        for option in self.options():
            kind, arguments = get_origin(option.annotation), get_args(option.annotation)
            if isinstance(part, int) and kind in (tuple, list):
                return SchemaNode(arguments[0])
            if isinstance(part, str) and kind in (dict, Mapping):
                return SchemaNode(arguments[1])
        return None


def expected(node: SchemaNode) -> str:
    """A phrase such as `must be a number in (0, 1]`; empty where any value may stand."""
    options = list(dict.fromkeys(_phrase(option) for option in node.options()))
    return f"must be {' or '.join(options)}" if all(options) else ""


def _flattened(limits: Sequence[object]) -> list[object]:
    """Unpack each `Field(gt=0)` inside an `Annotated` into its limits."""
    return [inner for limit in limits for inner in (limit.metadata if isinstance(limit, FieldInfo) else [limit])]


def _phrase(node: SchemaNode) -> str:
    kind = get_origin(node.annotation) or node.annotation
    if kind is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(node.annotation))
    if kind is bool:
        return "true or false"
    if kind is int:
        return "a whole number" + _range(node.limits)
    if kind in (float, Decimal):
        return "a number" + _range(node.limits)
    if kind is str:
        return "text" + _length(node.limits, "characters")
    if kind in (tuple, list):
        return "a list" + _length(node.limits, "entries")
    if kind in (type(None), None):
        return "null"
    if kind in (dict, Mapping):
        return "a mapping"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        required = [name for name, info in kind.model_fields.items() if info.is_required()]
        return "a section" + (f" with {', '.join(required)}" if required else " of settings")
    return ""


def _range(limits: Sequence[object]) -> str:
    above = next((limit.gt for limit in limits if isinstance(limit, Gt)), None)
    at_least = next((limit.ge for limit in limits if isinstance(limit, Ge)), None)
    below = next((limit.lt for limit in limits if isinstance(limit, Lt)), None)
    at_most = next((limit.le for limit in limits if isinstance(limit, Le)), None)
    has_floor, has_ceiling = (above, at_least) != (None, None), (below, at_most) != (None, None)
    if has_floor and has_ceiling:
        left = f"({above}" if above is not None else f"[{at_least}"
        right = f"{below})" if below is not None else f"{at_most}]"
        return f" in {left}, {right}"
    if has_floor:
        return f" above {above}" if above is not None else f" of at least {at_least}"
    if has_ceiling:
        return f" below {below}" if below is not None else f" of at most {at_most}"
    return ""


def _length(limits: Sequence[object], of_what: str) -> str:
    least = next((limit.min_length for limit in limits if isinstance(limit, MinLen)), 0)
    most = next((limit.max_length for limit in limits if isinstance(limit, MaxLen)), None)
    if most is not None:
        return f" of {least} to {most} {of_what}"
    return f" of at least {least} {of_what}" if least else ""


def describe_problems(error: ValidationError, model_class: type[BaseModel], layers: Layers) -> list[str]:
    """One line per problem: dotted key, value found, expected values, origin."""
    problems = error.errors(include_url=False)
    lines = (
        _describe(details, SchemaNode(model_class), layers)
        for details in problems
        if not _is_miscount(details, problems)
    )
    return list(dict.fromkeys(lines))


def describe_credentials(layers: Layers) -> list[str]:
    """One line per setting that holds credentials, without their value."""
    lines = []
    for path, origin in layers.origins.items():
        value = layers.value_at(path)
        if isinstance(value, str) and (is_secret_name(str(path[-1])) or is_url_with_credentials(value)):
            lines.append(
                f"{dotted_key(path)}: holds credentials, which would be kept with the run; {REMEDY} ({origin})"
            )
    return lines


def describe_booleans_for_numbers(model_class: type[BaseModel], layers: Layers) -> list[str]:
    """One line for each `true` or `false` where a number belongs; pydantic would read them as 1 and 0."""
    schema = SchemaNode(model_class)
    lines = []
    for path, origin in layers.origins.items():
        value = layers.value_at(path)
        if isinstance(value, bool):
            key, node = schema.follow(path)
            if key == path and node.takes_only_numbers():
                lines.append(f"{dotted_key(path)} = {show(value)}: {expected(node)} ({origin})")
    return lines


def show(value: object) -> str:
    """`value` as one line of YAML, truncated where long."""
    line = to_yaml(value, one_line=True).strip().removesuffix("...").strip()
    return line if len(line) <= LONGEST_SHOWN_VALUE else line[: LONGEST_SHOWN_VALUE - 3] + "..."


def _is_miscount(details: ErrorDetails, problems: Sequence[ErrorDetails]) -> bool:
    """Whether a list is called too short only because pydantic does not count its invalid entries."""
    key = details["loc"]
    return details["type"] == "too_short" and any(
        other["loc"][: len(key)] == key and other["loc"] != key for other in problems
    )


def _describe(details: ErrorDetails, schema: SchemaNode, layers: Layers) -> str:
    path, node = schema.follow(details["loc"])
    origin = layers.origin_of(path)
    suffix = f" ({origin})" if origin and path else ""
    key = dotted_key(path)
    match details["type"]:
        case "extra_forbidden":
            value = show(details["input"])
            return f"{key} = {value}: unknown key; {_suggest(path, schema)}{suffix}"
        case "missing":
            return f"{key}: not set; {expected(node)}"
        case "value_error":
            message = details["msg"].removeprefix("Value error, ")
            return f"{_subject(path, node, details)}{message}{suffix}"
        case "decimal_max_places":
            places = details["ctx"]["decimal_places"]
            return f"{key} = {show(details['input'])}: {expected(node)} with at most {places} decimal places{suffix}"
        case _:
            value = show(details["input"])
            return f"{key} = {value}: {expected(node) or details['msg']}{suffix}"


def _subject(path: KeyPath, node: SchemaNode, details: ErrorDetails) -> str:
    """Prefix of a validator's own message: a section by name, a single setting by name and value."""
    if not path:
        return ""
    return f"{dotted_key(path)}: " if node.children() else f"{dotted_key(path)} = {show(details['input'])}: "


def _suggest(path: KeyPath, schema: SchemaNode) -> str:
    section, name = path[:-1], str(path[-1])
    siblings = list(schema.follow(section)[1].children())
    for near in difflib.get_close_matches(name, siblings, n=1):
        return f"did you mean {dotted_key((*section, near))}?"
    elsewhere = {str(key[-1]): dotted_key(key) for key in _all_keys(schema)}
    for near in difflib.get_close_matches(name, elsewhere, n=1, cutoff=0.8):
        return f"did you mean {elsewhere[near]}?"
    return f"known here are {', '.join(siblings)}"


def _all_keys(node: SchemaNode, prefix: KeyPath = ()) -> Iterator[KeyPath]:
    for name, child in node.children().items():
        yield (*prefix, name)
        yield from _all_keys(child, (*prefix, name))
