"""An experiment tracker that only notes the calls that it gets, for runs in processes of their own."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MODULE = """
import enum, json
from functools import partial

AlertLevel = enum.Enum("AlertLevel", "WARN")

def _noted(call, /, *args, level=None, **kwargs):
    with open({calls!r}, "a") as file:
        file.write(json.dumps([call, args, kwargs]) + "\\n")

init, log, alert, finish = (partial(_noted, call) for call in ("init", "log", "alert", "finish"))
"""
Call = tuple[str, list[Any], dict[str, Any]]


@dataclass(frozen=True)
class NotedTracker:
    """A module in place of trackio, with the calls of the library that a run makes."""

    folder: Path

    @classmethod
    def in_folder(cls, folder: Path) -> "NotedTracker":
        """Writes the module into a new folder."""
        folder.mkdir()
        (folder / "trackio.py").write_text(_MODULE.format(calls=str(folder / "calls")))
        return cls(folder)

    @property
    def calls(self) -> list[Call]:
        """All calls so far: name, arguments, named arguments."""
        return [tuple(json.loads(line)) for line in (self.folder / "calls").read_text().splitlines()]

    @property
    def alerts(self) -> list[dict[str, str]]:
        """The title and the text of each alert."""
        return [named for call, _, named in self.calls if call == "alert"]
