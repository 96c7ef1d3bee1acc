"""All outputs of a run. A failure to write is reported once and retried; it does not end the run."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from megaslm.observe.console import RunConsole
from megaslm.observe.records import MetricsFile, Record, read_step
from megaslm.observe.run_description import RunDescription
from megaslm.observe.tensorboard import TensorBoard
from megaslm.observe.tracker import Tracker


class RunLog:
    """metrics.jsonl, TensorBoard's events, the tracker and the console of one run."""

    def __init__(
        self,
        console: RunConsole,
        metrics: Path,
        tensorboard: Path,
        *,
        last_step: int,
        validation_is_due: bool,
        tokens_per_step: int,
        description: RunDescription | None = None,
        open_tracker: Callable[[], Tracker] | None = None,
    ) -> None:
        """Continues after `last_step`. Records of later steps, from an interrupted run, are removed.

        If `validation_is_due`, the validation of `last_step` is removed too: it is made again.
        """
        self._console = console
        self._failing: set[str] = set()
        metrics_file = MetricsFile(metrics, last_step=last_step, validation_is_due=validation_is_due)
        # Step 0 has only a validation, and a run that starts over makes it again.
        tells_last_step = validation_is_due or last_step == 0
        events = TensorBoard(
            tensorboard,
            first_step=last_step if tells_last_step else last_step + 1,
            tokens_per_step=tokens_per_step,
            description=description,
        )
        self._files: list[MetricsFile | TensorBoard | Tracker] = [metrics_file, events]
        self._tracker: Tracker | None = None
        if open_tracker is not None:
            self._open(open_tracker)
        # TensorBoard's readers discard whole steps, so the other records of this step are written again. They are
        # written now, not with the first step, so that a running server shows them at once.
        shown_anew = read_step(metrics, last_step) if validation_is_due and metrics.exists() else []
        self._attempt(events.name, lambda: events.write(shown_anew))

    def say(self, line: str) -> None:
        """Prints a line."""
        self._attempt("the console", lambda: self._console.say(line))

    def write(self, records: Sequence[Record]) -> None:
        """Writes records everywhere, after the waiting records of earlier failures."""
        for file in self._files:
            self._attempt_file(file, partial(file.write, records))
        if records:
            self._attempt("the console", lambda: self._console.show(records))

    def at_step(self, step: int) -> None:
        """Moves the progress bar, where there is one, to a step that is not read from the device yet."""
        if self._console.is_live:
            self._attempt("the console", lambda: self._console.at_step(step))

    def alert(self, title: str, text: str) -> None:
        """Sends an alert through the tracker, if there is one. Console and files tell of it anyway."""
        if self._tracker is not None:
            tracker = self._tracker
            self._attempt(tracker.name, lambda: tracker.alert(title, text))

    def sync(self) -> None:
        """Waits until all records are on disk."""
        for file in self._files:
            self._attempt_file(file, file.sync)

    def close(self) -> None:
        """Writes the waiting records if possible, and ends the progress bar."""
        self.write([])
        for name in sorted(self._failing):
            self._complain(f"{name}: still cannot be written; what was not is lost")
        if self._tracker is not None:
            self._attempt(self._tracker.name, self._tracker.close)
        self._attempt("the console", self._console.close)

    def _open(self, open_tracker: Callable[[], Tracker]) -> None:
        try:
            self._tracker = open_tracker()
        except OSError as error:
            self._complain(f"log.tracker: cannot be opened: {error}; this attempt of the run continues without it")
        else:
            self._files.append(self._tracker)

    def _attempt_file(self, file: MetricsFile | TensorBoard | Tracker, write: Callable[[], None]) -> None:
        if self._attempt(file.name, write) and file.lost_entries:
            self._complain(f"{file.name}: {file.lost_entries:,} entries are lost")

    def _attempt(self, name: str, write: Callable[[], None]) -> bool:
        """Whether a write succeeds again after a failure."""
        try:
            write()
        except OSError as error:
            if name not in self._failing:
                self._failing.add(name)
                self._complain(f"{name}: cannot be written: {error}; training continues; the next write tries again")
            return False
        recovered = name in self._failing
        self._failing.discard(name)
        return recovered

    def _complain(self, line: str) -> None:
        # If standard error cannot be written either, the report is dropped.
        with suppress(OSError):
            print(f"warning: {line}", file=sys.stderr, flush=True)
