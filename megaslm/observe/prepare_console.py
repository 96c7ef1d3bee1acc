"""What `megaslm prepare` prints while it works: a bar on a terminal, now and then a line elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from megaslm.data.preparing.prepare import PrepareProgress

_LINE_SECONDS = 10.0


class PrepareConsole:
    """Follows one run of prepare."""

    def __init__(self) -> None:
        """Nothing is drawn before there is something to show."""
        self._console = Console(highlight=False)
        self._bar = Progress(
            TextColumn("prepare"),
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

    def __enter__(self) -> "PrepareConsole":
        """Starts the bar, where there is a terminal to draw it on."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the bar as it is."""
        self._bar.stop()

    def show(self, progress: PrepareProgress) -> None:
        """Shows how far the run has come."""
        numbers = _numbers(progress)
        if self._task is None:
            before = progress.input_bytes_before
            self._task = self._bar.add_task("", total=progress.input_bytes, completed=before, numbers=numbers)
        self._bar.update(self._task, completed=progress.input_bytes_done, numbers=numbers)
        now = time.monotonic()
        is_last = progress.tasks_done == progress.tasks
        if not self._console.is_terminal and (is_last or now - self._said_at >= _LINE_SECONDS):
            self._said_at = now
            share = progress.input_bytes_done / max(1, progress.input_bytes)
            self._console.print(f"prepare · {share:4.0%} · {numbers}{_time_left(progress)}", soft_wrap=True)


def _numbers(progress: PrepareProgress) -> str:
    seconds = max(1e-9, progress.seconds)
    return (
        f"task {progress.tasks_done}/{progress.tasks} · {progress.text_bytes / 1e6:,.1f} MB of text · "
        f"{progress.text_bytes / 1e6 / seconds:,.1f} MB/s · {progress.tokens:,} tokens · "
        f"{progress.tokens / seconds:,.0f} tokens/s"
    )


def _time_left(progress: PrepareProgress) -> str:
    """At the pace of this run, for a log file; a terminal has its own column."""
    read = progress.input_bytes_done - progress.input_bytes_before
    left = progress.input_bytes - progress.input_bytes_done
    if not read or not left:
        return ""
    minutes, seconds = divmod(round(left / read * progress.seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f" · {hours}:{minutes:02}:{seconds:02} left"
