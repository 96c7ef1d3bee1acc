"""Each setting of a configuration, where its value came from, and what it means."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel
from rich.table import Table
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


def render(settings: Sequence[ExplainedSetting]) -> Table:
    """The settings as a table for a terminal. Settings at their default are dimmed."""
    table = Table(pad_edge=False, box=None)
    table.add_column("setting", overflow="fold", min_width=max(len(setting.key) for setting in settings))
    for name in ("value", "from", "meaning"):
        table.add_column(name, overflow="fold")
    for setting in settings:
        style = "dim" if setting.origin == DEFAULT else ""
        cells = (setting.key, show(setting.value), setting.origin, setting.meaning)
        table.add_row(*(Text(cell) for cell in cells), style=style)
    return table


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
    return " ".join(meaning.split())
