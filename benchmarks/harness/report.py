"""What every benchmark prints and writes: its question, a table, and the bars it is held against."""

import argparse
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table

from megaslm.files import write_file
from megaslm.model.flops import device_name


@dataclass(frozen=True)
class Options:
    """`quick`: smaller and fewer, to see that it runs. `json_file`: where the numbers go, if anywhere."""

    quick: bool
    json_file: Path | None


@dataclass(frozen=True)
class Bar:
    """A claim as a number and its limit."""

    name: str
    value: float
    limit: float
    better: Literal["lower", "higher"] = "lower"

    @property
    def holds(self) -> bool:
        return self.value <= self.limit if self.better == "lower" else self.value >= self.limit


def options(description: str | None) -> Options:
    """The options of the command line, the same for every benchmark."""
    arguments = option_parser(description).parse_args()
    return Options(arguments.quick, arguments.json)


def option_parser(description: str | None) -> argparse.ArgumentParser:
    """Of the options that every benchmark has, for one with more of its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="smaller and fewer, to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file")
    return parser


def report(question: str, rows: Sequence[Mapping[str, object]], bars: Sequence[Bar], chosen: Options) -> None:
    """Prints the table and the bars, and writes both. A bar that does not hold is said to, and no more."""
    print_report(question, rows, bars)
    write_report(question, rows, bars, chosen)


def print_report(question: str, rows: Sequence[Mapping[str, object]], bars: Sequence[Bar]) -> None:
    """Prints the table and the bars."""
    console = Console(width=120, highlight=False)
    console.print(question, style="bold")
    if rows:
        table = Table(*rows[0])
        for row in rows:
            table.add_row(*map(_shown, row.values()))
        console.print(table)
    for bar in bars:
        relation = "≤" if bar.better == "lower" else "≥"
        verdict = "holds" if bar.holds else "[bold red]does not hold[/]"
        console.print(f"{bar.name}: {bar.value:.3f} {relation} {bar.limit}: {verdict}")


def write_report(question: str, rows: Sequence[Mapping[str, object]], bars: Sequence[Bar], chosen: Options) -> None:
    """Writes the numbers to the file of the options, if there is one."""
    if chosen.json_file is None:
        return
    chosen.json_file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "question": question,
        "commit": commit(),
        "machine": machine(),
        "rows": [dict(row) for row in rows],
        "bars": [{**asdict(bar), "holds": bar.holds} for bar in bars],
    }
    # Whole at any time: a benchmark that is killed leaves what it wrote before.
    write_file(chosen.json_file, json.dumps(content, indent=1) + "\n")


def _shown(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1e}" if 0 < abs(value) < 0.0005 else f"{value:.3f}"


def commit() -> str:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"


def machine() -> dict[str, str | int]:
    return {
        "processor": device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
