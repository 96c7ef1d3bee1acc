"""The --json option of every verb that has a result."""

import json
from pathlib import Path
from typing import Annotated

import typer

JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the result to this file.")]


def write_json(path: Path | None, value: object) -> None:
    """Writes a verb's result, if a file was given."""
    if path is not None:
        path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
