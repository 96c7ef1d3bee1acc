"""Texts of a run in Markdown, for viewers that render it."""

import html
import re

from megaslm.observe.display import visible_on_one_line
from megaslm.observe.records import Sample

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+\-.!])")
_EDGES = re.compile(r"^(\s*)(.*?)(\s*)$", re.DOTALL)


def code_block(text: str, language: str) -> str:
    """The text as it stands. It must hold no line of three backticks, which no YAML of a configuration does."""
    return f"```{language}\n{text}\n```"


def sample_text(sample: Sample) -> str:
    """A probe row with its kept tokens in bold. Line ends are visible signs."""
    stretches = (
        _bold(stretch) if place % 2 else _escaped(visible_on_one_line(stretch))
        for place, stretch in enumerate(sample["stretches"])
    )
    return f"{_escaped(sample['domain'])}, row {sample['row']}:\n\n{''.join(stretches).lstrip()}"


def _bold(text: str) -> str:
    # Spaces beside the asterisks would leave them as they are.
    before, inner, after = _EDGES.fullmatch(visible_on_one_line(text)).groups()  # type: ignore[union-attr]
    return f"{before}**{_escaped(inner)}**{after}" if inner else before


def _escaped(text: str) -> str:
    return html.escape(_SPECIAL.sub(r"\\\1", text), quote=False)
