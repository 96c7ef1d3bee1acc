"""All that a run says of itself. What cannot be written is said once and tried again; it ends no run."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from megaslm.observe.console import RunConsole
from megaslm.observe.records import MetricsFile, Record, read_step
from megaslm.observe.tensorboard import TensorBoard


class RunLog:
    """metrics.jsonl, TensorBoard's events and the console of one run."""

    def __init__(
        self,
        console: RunConsole,
        metrics: Path,
        tensorboard: Path,
        *,
        last_step: int,
        validation_is_due: bool,
    ) -> None:
        """Goes on after `last_step`; what an interrupted run wrote of later steps is taken out.

        So is its validation of `last_step` where `validation_is_due`: it is made again.
        """
        self._console = console
        self._failing: set[str] = set()
        metrics_file = MetricsFile(metrics, last_step=last_step, validation_is_due=validation_is_due)
        # Step 0 has nothing but a validation, which a run that begins anew makes again.
        tells_last_step = validation_is_due or last_step == 0
        events = TensorBoard(tensorboard, first_step=last_step if tells_last_step else last_step + 1)
        self._files = (metrics_file, events)
        # TensorBoard's readers take back whole steps: what else there was of this one is shown anew. A server that is
        # running is told at once, not with the first step.
        shown_anew = read_step(metrics, last_step) if validation_is_due and metrics.exists() else []
        self._attempt(events.name, lambda: events.write(shown_anew))

    def say(self, line: str) -> None:
        """Prints a line."""
        self._attempt("the console", lambda: self._console.say(line))

    def write(self, records: Sequence[Record]) -> None:
        """Writes records everywhere, and before them those that found no room so far."""
        for file in self._files:
            self._attempt_file(file, partial(file.write, records))
        if records:
            self._attempt("the console", lambda: self._console.show(records))

    def sync(self) -> None:
        """Waits until all that was written has reached the disk."""
        for file in self._files:
            self._attempt_file(file, file.sync)

    def close(self) -> None:
        """Writes what found no room so far, if it can be, and ends the progress bar."""
        self.write([])
        for name in sorted(self._failing):
            self._complain(f"{name}: still cannot be written; what was not is lost")
        self._attempt("the console", self._console.close)

    def _attempt_file(self, file: MetricsFile | TensorBoard, write: Callable[[], None]) -> None:
        if self._attempt(file.name, write) and file.lost_entries:
            self._complain(f"{file.name}: {file.lost_entries:,} entries are lost")

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
