"""The option of every verb that has a result: a file to write it to."""

import json
from pathlib import Path
from typing import Annotated

import typer

JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the result to this file.")]


def write_json(path: Path | None, value: object) -> None:
    """Writes a verb's result, where a file was named."""
    if path is not None:
        path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
