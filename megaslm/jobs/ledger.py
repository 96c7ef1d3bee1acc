"""What of a long job is done: a file for each finished task, so that an interrupted job goes on where it was."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel

from megaslm.errors import MegaSLMError
from megaslm.jobs.durable import write_file
from megaslm.jobs.locks import locked
from megaslm.jobs.read_back import read_back

Outcome = TypeVar("Outcome", bound=BaseModel)

PATIENCE_SECONDS = 120.0
"""How long to wait for a task that another process is at. A worker whose run was killed may first have to end a call
into a library; a network file system keeps the locks of a host that died for a minute or more."""


class TaskNotes(Generic[Outcome]):
    """The notes of one job, in a folder that all of its processes share."""

    def __init__(self, folder: Path, outcome_type: type[Outcome], *, place: str) -> None:
        """`place` is what messages call the dataset that the job makes."""
        self.folder = folder
        self._outcome_type = outcome_type
        self._place = place

    def outcome(self, task: str) -> Outcome | None:
        """What a task did; null where it is still to be done."""
        note = self._note(task)
        if not note.is_file():
            return None
        return read_back(self._outcome_type, note.read_bytes(), str(note), "remove it, and the task is done again")

    def is_done(self, task: str) -> bool:
        """Whether a task is done."""
        return self._note(task).is_file()

    def note(self, task: str, outcome: Outcome) -> None:
        """Note what a task did."""
        write_file(self._note(task), outcome.model_dump_json())

    def complete(self, task: str, run: Callable[[], Outcome], *, patience_seconds: float = PATIENCE_SECONDS) -> Outcome:
        """Do a task, unless it is done, and note what it did; one process at a time does one task.

        Raises Busy where another process is at it for longer than the patience.
        """
        busy = f"{self._place}: {task} is being done by another process; wait for it or stop it"
        lock = self._note(task).with_suffix(".lock")
        with locked(lock, patience_seconds=patience_seconds, busy=busy):
            outcome = self.outcome(task)
            if outcome is None:
                outcome = run()
                self.note(task, outcome)
        return outcome

    def outcomes(self) -> dict[str, Outcome]:
        """What each task did that is done."""
        tasks = sorted(note.stem.removeprefix("task-") for note in self._notes())
        return {task: outcome for task in tasks if (outcome := self.outcome(task)) is not None}

    def has_outcomes(self) -> bool:
        """Whether any task is done."""
        return any(self._notes())

    def forget_all(self) -> None:
        """Every task is to be done again."""
        for note in self._notes():
            note.unlink()

    @contextmanager
    def setting_up(self) -> Iterator[None]:
        """For what one process does and the others wait for."""
        with locked(self.folder / "setup.lock", patience_seconds=math.inf, busy=""):
            yield

    def _notes(self) -> Iterator[Path]:
        return self.folder.glob("task-*.json")

    def _note(self, task: str) -> Path:
        return self.folder / f"task-{task}.json"


@contextmanager
def keeping_what_is_done(place: str | Path) -> Iterator[None]:
    """Says of a full disk, and what else the system refuses, that nothing is lost."""
    try:
        yield
    except OSError as error:
        raise MegaSLMError(
            f"{error.filename or place}: {error.strerror or error}; what is done is kept: mend this and run it again"
        ) from error
