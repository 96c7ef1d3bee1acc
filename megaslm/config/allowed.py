"""What a configuration's schema allows at a key, in words."""

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from megaslm.config.source import KeyPath


@dataclass(frozen=True)
class SchemaNode:
    """A place in a schema: the type of what may stand there, and the limits on it."""

    annotation: Any
    limits: tuple[object, ...] = ()

    def children(self) -> dict[str, "SchemaNode"]:
        """The keys of the sections that may stand here; none where no section may."""
        return {
            name: SchemaNode(info.annotation, tuple(info.metadata))
            for option in self.options()
            if isinstance(option.annotation, type) and issubclass(option.annotation, BaseModel)
            for name, info in option.annotation.model_fields.items()
        }

    def options(self) -> list["SchemaNode"]:
        """The types of which any one may stand here, null included."""
        if get_origin(self.annotation) is Annotated:
            inner, *limits = get_args(self.annotation)
            return SchemaNode(inner, (*self.limits, *_flattened(limits))).options()
        if get_origin(self.annotation) in (Union, types.UnionType):
            return [leaf for arg in get_args(self.annotation) for leaf in SchemaNode(arg, self.limits).options()]
        return [self]

    def follow(self, location: Sequence[str | int]) -> tuple[KeyPath, "SchemaNode"]:
        """Walk down pydantic's location of an error, whose names of union members are no keys and are left out."""
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
        """Whether nothing but numbers, and perhaps null, may stand here."""
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


def allowed(node: SchemaNode) -> str:
    """`must be a number in (0, 1]`; empty where anything may stand."""
    options = list(dict.fromkeys(_phrase(option) for option in node.options()))
    return f"must be {' or '.join(options)}" if all(options) else ""


def _flattened(limits: Sequence[object]) -> list[object]:
    """A `Field(gt=0)` inside `Annotated` holds its limits; the others are limits themselves."""
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
