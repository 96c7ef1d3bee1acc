"""Templates of a record's text: `{query}\\n{response}` has the names of fields in braces."""

from functools import lru_cache
from string import Formatter
from typing import NamedTuple


class TemplatePart(NamedTuple):
    """Literal text, and the field that follows it."""

    literal: str
    field: str | None
    """None at the end of a template that ends in literal text."""


@lru_cache
def template_parts(template: str) -> tuple[TemplatePart, ...]:
    """The parts of a template, in order. `{{` and `}}` are braces.

    Raises ValueError for a brace without its partner, a field without a name, one with a conversion or a format
    (`{a!r}`, `{a:>8}`), and a template without fields.
    """
    try:
        fields = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError("a brace has no partner; write {field}, or {{ and }} for braces") from error
    parts = []
    for literal, name, layout, conversion in fields:
        if name == "" or (name is not None and name != name.strip()):
            raise ValueError("a pair of braces holds no field's name; write {field}, or {{ and }} for braces")
        if layout or conversion:
            raise ValueError(f"{{{name}}} has a format after its name; a field is written as it is: {{{name}}}")
        parts.append(TemplatePart(literal, name))
    if all(part.field is None for part in parts):
        raise ValueError("it names no field; write fields in braces, such as {query}")
    return tuple(parts)
