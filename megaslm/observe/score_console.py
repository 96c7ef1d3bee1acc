"""What `megaslm score` prints while it works: a bar on a terminal, now and then a line elsewhere."""

import time
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

_LINE_SECONDS = 10.0


@dataclass(frozen=True)
class ScoreProgress:
    """How far a job has come, over all of its ranks."""

    rows: int
    """To be scored by this job; those that were scored before it do not count."""
    rows_done: int
    """Scored by this job."""
    seq_len: int
    """Targets per row."""
    ranks: int
    """Of this job."""
    seconds: float
    """Since its ranks began."""


class ScoreConsole:
    """Follows one job."""

    def __init__(self) -> None:
        """Nothing is drawn before there is something to show."""
        self._console = Console(highlight=False)
        self._bar = Progress(
            TextColumn("score"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            speed_estimate_period=120,
        )
        self._task: TaskID | None = None
        self._said_at = time.monotonic()
        self._said_rows = -1

    def __enter__(self) -> "ScoreConsole":
        """Starts the bar, where there is a terminal to draw it on."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the bar as it is."""
        self._bar.stop()

    def show(self, progress: ScoreProgress) -> None:
        """Shows how far the job has come."""
        numbers = _numbers(progress)
        if self._task is None:
            self._task = self._bar.add_task("", total=progress.rows, numbers=numbers)
        self._bar.update(self._task, completed=progress.rows_done, numbers=numbers)
        now = time.monotonic()
        is_last = progress.rows_done == progress.rows
        is_news = progress.rows_done != self._said_rows
        if not self._console.is_terminal and is_news and (is_last or now - self._said_at >= _LINE_SECONDS):
            self._said_at, self._said_rows = now, progress.rows_done
            share = progress.rows_done / max(1, progress.rows)
            self._console.print(f"score · {share:4.0%} · {numbers}{_time_left(progress)}", soft_wrap=True)


def _numbers(progress: ScoreProgress) -> str:
    per_second = progress.rows_done / max(1e-9, progress.seconds)
    ranks = "1 rank" if progress.ranks == 1 else f"{progress.ranks} ranks"
    return (
        f"{progress.rows_done:,}/{progress.rows:,} rows · {ranks} · {per_second:,.1f} rows/s · "
        f"{per_second * progress.seq_len:,.0f} tokens/s"
    )


def _time_left(progress: ScoreProgress) -> str:
    left = progress.rows - progress.rows_done
    if not progress.rows_done or not left:
        return ""
    minutes, seconds = divmod(round(left / progress.rows_done * progress.seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f" · {hours}:{minutes:02}:{seconds:02} left"
