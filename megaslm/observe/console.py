"""What a run prints: a progress bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from megaslm.observe.records import Record, SkippedRecord, StepRecord, ValidationRecord


class RunConsole:
    """Follows one run, from its first step to its last."""

    def __init__(self, name: str, *, total_steps: int, done_steps: int) -> None:
        """Starts the bar, where there is a terminal to draw it on."""
        self._console = Console(highlight=False)
        self._name = name
        self._total_steps = total_steps
        self._done_before = done_steps
        self._started = time.monotonic()
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(name, total=total_steps, completed=done_steps, numbers="")
        self._progress.start()

    def say(self, line: str) -> None:
        """Prints a line, above the bar where there is one.

        Raises:
            OSError: it could not be printed, the disk under a log being full for instance.
        """
        if self._console.is_terminal:
            self._console.print(line, markup=False, soft_wrap=True)
        else:
            # Rich would keep all that it could not print, and print it again with every line.
            print(line, flush=True)

    def show(self, records: Sequence[Record]) -> None:
        """Shows the newest step, and every one that was skipped and every validation; raises what `say` does."""
        steps = [record for record in records if isinstance(record, StepRecord)]
        if steps:
            self._show_step(steps[-1])
        for record in records:
            if isinstance(record, SkippedRecord):
                self.say(f"{self._name} · step {record.step}/{self._total_steps} · skipped: {record.reason}")
            if isinstance(record, ValidationRecord):
                self.say(
                    f"{self._name} · step {record.step} · held out {record.name}/{record.domain}: "
                    f"loss {record.loss:.4f} · perplexity {record.perplexity:.2f} ({record.targets:,} targets)"
                )

    def close(self) -> None:
        """Ends the bar."""
        self._progress.stop()

    def _show_step(self, record: StepRecord) -> None:
        numbers = (
            f"loss {record.loss:.4f} · selected {record.selected_ratio:.1%} · {record.tokens_per_second:,.0f} tokens/s"
        )
        if self._console.is_terminal:
            self._progress.update(self._task, completed=record.step, numbers=numbers)
            return
        seconds_per_step = (time.monotonic() - self._started) / (record.step - self._done_before)
        remaining_seconds = seconds_per_step * (self._total_steps - record.step)
        self.say(
            f"{self._name} · step {record.step}/{self._total_steps} · {numbers} · "
            f"lr {record.learning_rate:.2e} · {remaining_seconds:.0f} s left"
        )
