"""What the fault tests measure, in a file that docs/operations.md is made of."""

import json
import os
from pathlib import Path
from typing import TypedDict

import torch

from megaslm.model.flops import device_name
from tests.launched import ROOT

Figure = float | int | str


class Measured(TypedDict):
    """The content of the file."""

    machine: str
    rows: dict[str, dict[str, Figure]]


def figures_file() -> Path:
    """MEGASLM_FAULTS_JSON, or runs/faults.json."""
    return Path(os.environ.get("MEGASLM_FAULTS_JSON", ROOT / "runs" / "faults.json"))


def read_figures(path: Path) -> Measured:
    """The figures that are there."""
    if not path.is_file():
        return {"machine": "", "rows": {}}
    measured: Measured = json.loads(path.read_text(encoding="utf-8"))
    return measured


class Figures:
    """Keeps the figures of a row of the table, once its test has seen what it expects."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def record(self, row: str, **figures: Figure) -> None:
        """Adds to the figures of a row; what it had under these names before is replaced."""
        measured = read_figures(self._path)
        # What else the machine had to do is in every number of seconds.
        load = os.getloadavg()[2]
        measured["machine"] = (
            f"{device_name(torch.device('cpu'))}, {os.cpu_count()} cores with a load average of {load:.1f}"
        )
        measured["rows"].setdefault(row, {}).update(
            {name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}
        )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n", encoding="utf-8")
