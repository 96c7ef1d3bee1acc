"""pydantic's complaints, said in the terms of the one who wrote the file."""

import difflib
from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from megaslm.config.allowed import SchemaNode, allowed
from megaslm.config.credentials import REMEDY, is_secret_name, is_url_with_credentials
from megaslm.config.dump import to_yaml
from megaslm.config.layers import Layers
from megaslm.config.source import KeyPath, dotted_key

LONGEST_SHOWN_VALUE = 60


def describe_problems(error: ValidationError, model_class: type[BaseModel], layers: Layers) -> list[str]:
    """One line for each thing that is wrong: dotted key, value found, what is allowed, origin."""
    problems = error.errors(include_url=False)
    lines = (
        _describe(details, SchemaNode(model_class), layers)
        for details in problems
        if not _is_miscount(details, problems)
    )
    return list(dict.fromkeys(lines))


def describe_credentials(layers: Layers) -> list[str]:
    """One line for each setting that holds credentials, without their value."""
    lines = []
    for path, origin in layers.origins.items():
        value = layers.value_at(path)
        if isinstance(value, str) and (is_secret_name(str(path[-1])) or is_url_with_credentials(value)):
            lines.append(
                f"{dotted_key(path)}: holds credentials, which would be kept with the run; {REMEDY} ({origin})"
            )
    return lines


def describe_booleans_for_numbers(model_class: type[BaseModel], layers: Layers) -> list[str]:
    """One line for each `true` or `false` where a number belongs; pydantic would take them for 1 and 0."""
    schema = SchemaNode(model_class)
    lines = []
    for path, origin in layers.origins.items():
        value = layers.value_at(path)
        if isinstance(value, bool):
            key, node = schema.follow(path)
            if key == path and node.takes_only_numbers():
                lines.append(f"{dotted_key(path)} = {show(value)}: {allowed(node)} ({origin})")
    return lines


def show(value: object) -> str:
    """`value` as a YAML author would write it on one line, cut where long."""
    line = to_yaml(value, one_line=True).strip().removesuffix("...").strip()
    return line if len(line) <= LONGEST_SHOWN_VALUE else line[: LONGEST_SHOWN_VALUE - 3] + "..."


def _is_miscount(details: ErrorDetails, problems: Sequence[ErrorDetails]) -> bool:
    """Whether a list is called too short only because pydantic does not count those of its entries that are wrong."""
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
            return f"{key}: not set; {allowed(node)}"
        case "value_error":
            message = details["msg"].removeprefix("Value error, ")
            return f"{_subject(path, node, details)}{message}{suffix}"
        case "decimal_max_places":
            places = details["ctx"]["decimal_places"]
            return f"{key} = {show(details['input'])}: {allowed(node)} with at most {places} decimal places{suffix}"
        case _:
            value = show(details["input"])
            return f"{key} = {value}: {allowed(node) or details['msg']}{suffix}"


def _subject(path: KeyPath, node: SchemaNode, details: ErrorDetails) -> str:
    """What a validator's own message is about: a section by name, a single setting by name and value."""
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
