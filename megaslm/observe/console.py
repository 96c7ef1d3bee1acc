"""Progress of runs and long jobs: a progress bar on a terminal, plain lines elsewhere."""

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.console import Console, ConsoleDimensions, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from megaslm.jobs.progress import JobProgress
from megaslm.observe.display import duration, percent, rounded, short_count, size
from megaslm.observe.records import (
    Record,
    ReportRecord,
    SkippedRecord,
    StepRecord,
    TaskLossRecord,
    TaskRecord,
    ValidationRecord,
)

# A job of minutes prints a line every few seconds, a job of hours a line per minute.
_LINE_SECONDS, _LONGEST_LINE_SECONDS = 5.0, 60.0
_LINE_SHARE = 0.01
_QUIET_SECONDS = 30.0
# A drawing takes two milliseconds, in which the thread that trains waits.
_DRAWING_SECONDS = 3.0
_COUNTED = ("documents", "tokens", "rows", "targets")
"""The quantities that jobs count beside bytes of text, in printed order."""


class _Terminal(Console):
    """The console of `sys.stdout`. Libraries write into the usual descriptors, of which rich would ask the width."""

    @property  # type: ignore[misc]  # Rich can also be given a size.
    def size(self) -> ConsoleDimensions:
        """Columns and lines; those of rich where the output is no terminal, or where COLUMNS sets them."""
        try:
            columns, lines = os.get_terminal_size(self.file.fileno())
        except (OSError, ValueError):
            return super().size
        return super().size if "COLUMNS" in os.environ or not columns else ConsoleDimensions(columns, lines)


class _Block(Progress):
    """Two lines at the bottom of a terminal: a progress bar with the time left, and the numbers that matter."""

    def __init__(self, name: str, console: Console) -> None:
        """Draws only on a terminal that can move its cursor, and neither under CI nor with NO_COLOR."""
        self.is_live = (
            console.is_interactive and not console.quiet and not console.no_color and not os.environ.get("CI")
        )
        self._name = name
        self._numbers = ""
        self._drawn_at = -math.inf
        # Rich would draw from a thread of its own, ten times per second.
        super().__init__(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[place]}"),
            console=console,
            disable=not self.is_live,
            auto_refresh=False,
        )

    def get_renderables(self) -> Iterator[RenderableType]:
        """The lines of the block."""
        yield self.make_tasks_table(self.tasks)
        if self._numbers:
            yield Text(f"  {self._numbers}", no_wrap=True, overflow="ellipsis")

    def show(self, done: int, total: int, place: str, numbers: str | None = None, *, at_once: bool = False) -> None:
        """Draws the block, every three seconds unless `at_once`. The numbers stay until there are others."""
        if not self.is_live:
            return
        if not self.tasks:
            self.add_task(self._name, total=total, place=place)
        self.update(self.tasks[0].id, completed=done, place=place)
        self._numbers = self._numbers if numbers is None else numbers
        now = time.monotonic()
        if at_once or now - self._drawn_at >= _DRAWING_SECONDS:
            self._drawn_at = now
            self.refresh()


class RunConsole:
    """Follows one run, from its first step to its last."""

    def __init__(self, name: str, *, total_steps: int, done_steps: int) -> None:
        """Starts the progress bar if the output is a terminal."""
        self._console = _Terminal(highlight=False)
        self._name = name
        self._total_steps = total_steps
        self._done_before = done_steps
        self._started = time.monotonic()
        self._block = _Block(name, self._console)
        self.is_live = self._block.is_live
        """Whether there is a bar to move."""
        self._block.start()
        self.at_step(done_steps)

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one.

        Raises OSError where the line could not be printed, for example because the disk of a log file is full.
        """
        if self._block.is_live:
            self._console.print(line, markup=False, soft_wrap=True)
        else:
            # Rich would keep everything that it could not print, and print it again with every line.
            print(line, flush=True)

    def at_step(self, step: int) -> None:
        """Moves the progress bar. Needs nothing of what the step has computed."""
        self._block.show(step, self._total_steps, self._place(step))

    def show(self, records: Sequence[Record]) -> None:
        """Shows the newest step, every skipped step and every validation. Raises the errors of `say`."""
        steps = [record for record in records if isinstance(record, StepRecord)]
        if steps:
            reports = [record for record in records if isinstance(record, ReportRecord)]
            self._show_step(steps[-1], reports[-1].mfu if reports else None)
        for record in records:
            if isinstance(record, SkippedRecord):
                self.say(f"{self._name} · step {record.step}/{self._total_steps} · skipped: {record.reason}")
            if isinstance(record, ValidationRecord):
                self.say(
                    f"{self._name} · step {record.step} · held out {record.place}: "
                    f"loss {record.loss:.4f} · perplexity {record.perplexity:.2f} ({record.targets:,} targets)"
                )

            if isinstance(record, TaskRecord):
                self.say(
                    f"{self._name} · step {record.step} · task {record.name}: {record.accuracy:.1%} right "
                    f"({record.items:,} items, {record.empty:,} without an answer)"
                )
            if isinstance(record, TaskLossRecord):
                self.say(f"{self._name} · step {record.step} · task {record.name}: {losses_on(record)}")

    def close(self) -> None:
        """Ends the bar."""
        self._block.stop()

    def _show_step(self, record: StepRecord, mfu: float | None) -> None:
        pace = f"{rounded(record.tokens_per_second)} tokens/s" + ("" if mfu is None else f" · MFU {percent(mfu)}")
        if self._block.is_live:
            numbers = f"{_short_loss_of(record)} · {short_count(record.tokens)} tokens · {pace}"
            is_last = record.step == self._total_steps
            self._block.show(record.step, self._total_steps, self._place(record.step), numbers, at_once=is_last)
            return
        self.say(
            f"{self._name} · step {record.step}/{self._total_steps} · {loss_of(record)} · {pace} · "
            f"lr {record.learning_rate:.2e}{_left(self._seconds_left(record.step))}"
        )

    def _place(self, step: int) -> str:
        return f"step {step:,}/{self._total_steps:,}{_left(self._seconds_left(step))}"

    def _seconds_left(self, step: int) -> float | None:
        """At the pace of this attempt; None before its first step and after its last."""
        made = step - self._done_before
        if made <= 0 or step >= self._total_steps:
            return None
        return (time.monotonic() - self._started) / made * (self._total_steps - step)


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f" · {duration(seconds)} left"


def losses_on(record: TaskLossRecord) -> str:
    """What was measured on a task, and on how many items."""
    found = (
        ("nats per token", record.nats_per_token, ".4f"),
        ("bits per byte", record.bits_per_byte, ".4f"),
        ("of the choices right", record.choice_accuracy, ".1%"),
        ("per byte", record.choice_accuracy_per_byte, ".1%"),
    )
    measured = [f"{value:{form}} {name}" for name, value, form in found if value is not None]
    return f"{' · '.join(measured) or 'no finite loss'} ({record.items:,} items)"


def loss_of(record: StepRecord) -> str:
    """The loss of the selected targets and, beside it, that of all: only this one compares with causal LM."""
    if record.selected_ratio == 1:
        return f"loss {record.loss:.4f}"
    of_all = "" if record.all_loss is None else f" · {record.all_loss:.4f} of all"
    return f"loss {record.loss:.4f} of the selected {record.selected_ratio:.1%}{of_all}"


def _short_loss_of(record: StepRecord) -> str:
    """The same for a progress bar, whose numbers have half of a terminal's width."""
    if record.selected_ratio == 1:
        return f"loss {record.loss:.4f}"
    of_all = "" if record.all_loss is None else f" · all {record.all_loss:.4f}"
    return f"loss {record.loss:.4f} ({record.selected_ratio:.0%}){of_all}"


@dataclass(frozen=True)
class JobState:
    """The progress of a job, in any unit."""

    total: int
    """All units of work."""
    done: int
    """Finished units, including those of earlier runs."""
    before: int
    """Units that earlier runs finished."""
    seconds: float
    """Time since this run began."""
    numbers: str
    """The counts and rates as text."""
    is_complete: bool
    """Whether all tasks are done. The last task still writes its files after its last unit."""

    @property
    def percent(self) -> int:
        """The finished share of the work; 100 only if all of it is done."""
        return 100 if self.is_complete else min(99, math.floor(100 * self.done / max(1, self.total)))

    def time_left(self) -> str:
        """The time left at the pace of this run."""
        made = self.done - self.before
        is_known = made and self.done < self.total
        return _left((self.total - self.done) / made * self.seconds if is_known else None)


def state_of(progress: JobProgress) -> JobState:
    """Converts a job's progress to the form that is shown."""
    seconds = max(1e-9, progress.seconds)
    numbers = []
    text_bytes = progress.counts.get("text_bytes")
    if text_bytes is not None:
        numbers += [f"{size(text_bytes)} of text", f"{size(text_bytes / seconds)}/s"]
    for name in _COUNTED:
        if name in progress.counts:
            count = progress.counts[name]
            numbers += [f"{count:,} {name}", f"{rounded(count / seconds)} {name}/s"]
    numbers.append(f"{progress.tasks_done:,} of {progress.tasks:,} tasks")
    numbers.append("1 process" if progress.processes == 1 else f"{progress.processes} processes")
    if progress.tasks_retried:
        numbers.append(f"{progress.tasks_retried:,} begun again")
    if progress.tasks_left:
        numbers.append(f"{progress.tasks_left:,} left")
    return JobState(
        total=progress.total,
        done=progress.done,
        before=progress.before,
        seconds=progress.seconds,
        numbers=" · ".join(numbers),
        is_complete=progress.tasks_done == progress.tasks,
    )


def show_job(console: Console, progress: JobProgress) -> None:
    """Prints the progress of a job that another process does."""
    work, age = state_of(progress), (datetime.now(UTC) - progress.written).total_seconds()
    ended = f" ({_QUIET_SECONDS:.0f} s and more: it has ended or waits)" if age > _QUIET_SECONDS else ""
    console.print(
        f"{progress.job} · {work.percent:3}% · {work.numbers}{work.time_left()} · written {duration(age)} ago{ended}",
        soft_wrap=True,
    )


class JobConsole:
    """Follows one job: a progress bar on a terminal, lines elsewhere, and a last line once all is done."""

    def __init__(self, verb: str, *, quiet: bool = False) -> None:
        """Draws nothing before the first `show`, and nothing at all if `quiet`, as on all ranks but the first."""
        self._verb = verb
        self._console = _Terminal(highlight=False, quiet=quiet)
        self._block = _Block(verb, self._console)
        self._began_at = self._said_at = time.monotonic()
        self._said_numbers = ""
        self._state: JobState | None = None

    def __enter__(self) -> "JobConsole":
        """Starts the progress bar if the output is a terminal."""
        self._block.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Says that all is done, unless an error ends the job. This line takes the place of the bar."""
        self._block.live.transient = error is None
        self._block.stop()
        if error is None:
            state = self._state
            done = "" if state is None else f"{state.percent}% · {state.numbers} · "
            self.say(f"{done}done in {duration(time.monotonic() - self._began_at)}")

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        # A full disk under the output must not end the job.
        with suppress(OSError):
            if self._block.is_live:
                self._console.print(f"{self._verb} · {line}", markup=False, soft_wrap=True)
            elif not self._console.quiet:
                # Rich would keep everything that it could not print, and print it again with every line.
                print(f"{self._verb} · {line}", flush=True)

    def show(self, progress: JobProgress) -> None:
        """Shows the job's progress."""
        state = self._state = state_of(progress)
        place = f"{state.percent}%{state.time_left()}"
        self._block.show(state.done, state.total, place, state.numbers, at_once=state.is_complete)
        now = time.monotonic()
        between = min(_LONGEST_LINE_SECONDS, max(_LINE_SECONDS, _LINE_SHARE * (now - self._began_at)))
        is_due = now - self._said_at >= between and state.numbers != self._said_numbers
        # A job's last line comes at its end.
        if not self._block.is_live and is_due and not state.is_complete:
            self._said_at, self._said_numbers = now, state.numbers
            self.say(f"{state.percent:3}% · {state.numbers}{state.time_left()}")
