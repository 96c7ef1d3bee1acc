"""All that a run says of itself. What cannot be written is said once and tried again; it ends no run."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from megaslm.observe.console import RunConsole
from megaslm.observe.records import MetricsFile, Record
from megaslm.observe.tensorboard import TensorBoard


class RunLog:
    """metrics.jsonl, TensorBoard's events and the console of one run."""

    def __init__(self, console: RunConsole, metrics: Path, tensorboard: Path, *, last_step: int) -> None:
        """Goes on after `last_step`; what an interrupted run wrote of later steps is taken out or hidden."""
        self._console = console
        metrics_file = MetricsFile(metrics, last_step=last_step)
        self.skipped_steps = metrics_file.skipped_steps
        self._files = (metrics_file, TensorBoard(tensorboard, last_step=last_step))
        self._failing: set[str] = set()

    def say(self, line: str) -> None:
        """Prints a line."""
        self._attempt("the console", lambda: self._console.say(line))

    def write(self, records: Sequence[Record]) -> None:
        """Writes records everywhere, and before them those that found no room so far."""
        for file in self._files:
            if self._attempt(file.name, partial(file.write, records)) and file.lost_entries:
                self._complain(f"{file.name}: {file.lost_entries:,} entries are lost")
        if records:
            self._attempt("the console", lambda: self._console.show(records))

    def close(self) -> None:
        """Writes what found no room so far, if it can be, and ends the progress bar."""
        self.write([])
        for name in sorted(self._failing):
            self._complain(f"{name}: still cannot be written; what was not is lost")
        self._attempt("the console", self._console.close)

    def _attempt(self, name: str, write: Callable[[], None]) -> bool:
        """Whether this file can be written again that could not."""
        try:
            write()
        except OSError as error:
            if name not in self._failing:
                self._failing.add(name)
                self._complain(f"{name}: cannot be written: {error}; training goes on, and it is tried again")
            return False
        recovered = name in self._failing
        self._failing.discard(name)
        return recovered

    def _complain(self, line: str) -> None:
        # Where standard error cannot be written either, nobody can be told.
        with suppress(OSError):
            print(f"warning: {line}", file=sys.stderr, flush=True)
