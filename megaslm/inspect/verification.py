"""The output of `megaslm verify`: its progress and its findings."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.text import Text

from megaslm.inspect.verify import Finding, OnProgress, Verification
from megaslm.observe.display import size

_SHOWN = 100
"""Findings of one kind that are printed. The JSON report has all."""


@contextmanager
def progress_bar(console: Console, name: str) -> Iterator[OnProgress]:
    """A progress bar of bytes during the block, if `console` is a terminal. Yields the function that moves it."""
    bar = Progress(
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task(name, total=None)
    with bar:
        yield lambda done, total: bar.update(task, completed=done, total=total)


def show_verification(console: Console, found: Verification) -> None:
    """Prints every problem and every warning, and the amount and speed of reading."""
    _show(console, "problem", "bold red", found.problems)
    _show(console, "warning", "yellow", found.warnings)
    console.print(
        f"verify · {found.dataset} · {found.parts:,} parts · {found.rows:,} rows · {size(found.bytes)} in "
        f"{found.seconds:,.2f} s · {found.bytes / 1e6 / found.seconds:,.0f} MB/s · {found.workers} workers",
        markup=False,
        soft_wrap=True,
    )
    if not found.problems:
        console.print("every byte is what was written", style="bold green")


def _show(console: Console, kind: str, style: str, findings: tuple[Finding, ...]) -> None:
    for finding in findings[:_SHOWN]:
        line = Text.assemble((kind, style), " · ", (finding.path, "bold"), " ", finding.finding)
        console.print(line, soft_wrap=True)
    if len(findings) > _SHOWN:
        console.print(f"{kind} · and {len(findings) - _SHOWN:,} more: `--json FILE` writes them all", soft_wrap=True)
