"""Each setting of a configuration, where its value came from, and what it means."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from megaslm.config.load import DEFAULT, Loaded, settings_of
from megaslm.config.problems import show
from megaslm.config.source import KeyPath, dotted_key


@dataclass(frozen=True)
class ExplainedSetting:
    """One setting."""

    key: str
    value: object
    origin: str
    """`FILE:LINE`, `--set` or `default`."""
    meaning: str
    """The docstring of its field."""


def explain(loaded: Loaded[BaseModel]) -> list[ExplainedSetting]:
    """Every setting of `loaded`, in the order of the schema."""
    return [
        ExplainedSetting(key, value, loaded.provenance[key], _meaning(loaded.value, path))
        for path, value in settings_of(loaded.value)
        for key in [dotted_key(path)]
    ]


def render(settings: Sequence[ExplainedSetting]) -> Group:
    """Each setting with its value and origin on a line, and its meaning below. Settings at their default are dimmed."""
    lines: list[RenderableType] = []
    for setting in settings:
        style = "dim" if setting.origin == DEFAULT else "bold"
        lines.append(Text(f"{setting.key} = {show(setting.value)} · {setting.origin}", style=style, overflow="fold"))
        lines.append(Padding(Text(setting.meaning, style="dim"), (0, 0, 0, 4)))
    return Group(*lines)


def one_line(docstring: str) -> str:
    """A docstring without its line breaks."""
    return " ".join(docstring.split())


def _meaning(section: BaseModel, path: KeyPath) -> str:
    """The docstring, on one line, of the innermost field on the way to `path` that has one."""
    meaning = ""
    current: object = section
    for part in path:
        if isinstance(current, BaseModel):
            meaning = type(current).model_fields[str(part)].description or meaning
            current = getattr(current, str(part))
        elif isinstance(current, dict | list | tuple):
            current = current[part]  # type: ignore[index]
    return one_line(meaning)
