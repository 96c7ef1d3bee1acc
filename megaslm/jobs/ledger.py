"""The tasks of a job, in a folder that all of its processes share: which are done, and which process does which.

Each finished task has a note. A process holds a task's lock while it does the task. When the process ends, the kernel
releases the lock, and another process can draw the task again. A file beside the lock names the process that does the
task, and the processes that died over it.
"""

import math
import os
import random
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from megaslm import errors
from megaslm.errors import MegaSLMError, PeerFailed, Stopped
from megaslm.files import Busy, locked, read_back, write_file
from megaslm.jobs.progress import PROGRESS, Tally

Outcome = TypeVar("Outcome", bound=BaseModel)
T = TypeVar("T")

MOST_DEATHS = 3
"""A task is given up after this many of its processes have died within one run of its job."""
_PATIENCE_SECONDS = 120.0
"""How long a network file system may keep the lock of a host that died."""
_BRIEFLY_SECONDS = 2.0
# Time for killed processes to end.
_KILLED_SECONDS = 10.0
# Hundreds of processes would overload the server of a network file system if each waiting one looked at all busy tasks.
# They look at a few tasks at a time, and the less often the more processes there are.
_LOOKED_AT_ONCE = 8
_PAUSE_SECONDS_PER_PROCESS = 0.01
_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 0.8


class Drawn(Enum):
    """The result of drawing a task."""

    DONE = "done"
    """The task is done, now or before."""
    BUSY = "busy"
    """Another process is doing it."""
    LEFT = "left"
    """It was given up after `MOST_DEATHS` deaths in this run."""


class _Failure(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    message: str


class Ledger(Generic[Outcome]):
    """The tasks of one job: their results, locks and failures."""

    def __init__(self, folder: Path, outcome_type: type[Outcome], *, place: str) -> None:
        """`place` is the job's dataset, as messages name it."""
        self.folder = folder
        self._outcome_type = outcome_type
        self.place = place

    @property
    def claim(self) -> Path:
        """The file that the first process of a run keeps locked while it works."""
        return self.folder / "lock"

    @property
    def at_work(self) -> Path:
        """The file on which ranks hold a shared lock while they work."""
        return self.folder / "at-work.lock"

    @contextmanager
    def claimed(self, *, alone: bool, busy: str) -> Iterator[None]:
        """Claim the job for a run: alone, or together with runs that do other tasks.

        Raises Busy, with the message `busy`, where another run is at work.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # Another process may look for a moment whether it is free.
        with locked(self.claim, shared=not alone, patience_seconds=0.0 if alone else _BRIEFLY_SECONDS, busy=busy):
            if alone:
                # Ranks of a run whose first rank has died may still be at work, perhaps with other settings.
                with locked(self.at_work, patience_seconds=_KILLED_SECONDS, busy=busy):
                    self.forget_runs()
            yield

    def outcome(self, task: str) -> Outcome | None:
        """The result of a task; None where it is not done."""
        note = self._note(task)
        if not note.is_file():
            return None
        return read_back(self._outcome_type, note.read_bytes(), str(note), "remove it, and the task is done again")

    def is_done(self, task: str) -> bool:
        """Whether a task is done."""
        return self._note(task).is_file()

    def note(self, task: str, outcome: Outcome) -> None:
        """Record the result of a task, which is done then."""
        write_file(self._note(task), outcome.model_dump_json())

    def outcomes(self) -> dict[str, Outcome]:
        """The results of all finished tasks."""
        tasks = sorted(note.stem.removeprefix("task-") for note in self._notes())
        return {task: outcome for task in tasks if (outcome := self.outcome(task)) is not None}

    def has_outcomes(self) -> bool:
        """Whether any task is done."""
        return any(self._notes())

    def forget_all(self) -> None:
        """Mark every task as not done. Raises Busy where a process is doing one."""
        for note in self._notes():
            busy = f"{self.place}: {note.stem} is being done by another process; wait for it or stop it"
            with locked(note.with_suffix(".lock"), patience_seconds=_PATIENCE_SECONDS, busy=busy):
                note.unlink()

    def forget_runs(self) -> None:
        """Remove the progress, failures and deaths that earlier runs of the job recorded."""
        for pattern in ("tally-*.json", "failure-*.json", "task-*.tries", PROGRESS):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the ledger of a finished job."""
        # Rename first: a process that still looks would take notes that vanish one by one for open tasks.
        with suppress(OSError):
            self.folder.rename(self.folder.with_name(f"{self.folder.name}-{uuid.uuid4().hex[:8]}"))
        # Those of killed processes too.
        for gone in self.folder.parent.glob(f"{self.folder.name}-*"):
            shutil.rmtree(gone, ignore_errors=True)

    @contextmanager
    def setting_up(self) -> Iterator[None]:
        """A lock for a set-up that one process does while the others wait."""
        with locked(self.folder / "setup.lock", patience_seconds=math.inf, busy=""):
            yield

    def draw(self, task: str, do: Callable[[], Outcome], run_id: str, tally: Tally | None = None) -> Drawn:
        """Do a task and record its result, unless it is done, another process is doing it, or it was given up.

        `run_id` identifies this run of the job. `tally` counts the work. Raises the exceptions of `do`.
        """
        if self.is_done(task):
            return Drawn.DONE
        lock = self._note(task).with_suffix(".lock")
        with suppress(Busy), locked(lock, busy=""):
            self.look_again()
            if self.is_done(task):
                return Drawn.DONE
            deaths = self._tries(task, run_id)
            if len(deaths) >= MOST_DEATHS:
                return Drawn.LEFT
            tries = self._tries_file(task)
            tries.write_text("\n".join([*deaths, f"{run_id} {socket.gethostname()} {os.getpid()}"]))
            try:
                self.note(task, do())
            finally:
                # A killed process does not get here.
                tries.unlink(missing_ok=True)
            if tally is not None:
                tally.end_task(retried=bool(deaths))
            return Drawn.DONE
        return Drawn.BUSY

    def is_left(self, task: str, run_id: str) -> bool:
        """Whether the task was given up in this run, because too many of its processes died."""
        return not self.is_done(task) and len(self._tries(task, run_id)) >= MOST_DEATHS

    def look_again(self) -> None:
        """Open the folder: a network file system then forgets that a note was missing."""
        os.close(os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY))

    def fail(self, run_id: str, error: BaseException) -> None:
        """Tell all processes of a run that one of them failed, and why. The first message stays.

        PeerFailed has been told by another process.
        """
        if isinstance(error, PeerFailed):
            return
        message = str(error) if isinstance(error, MegaSLMError) else f"{type(error).__name__}: {error}"
        told = _Failure(kind=_kind(error), message=message).model_dump_json()
        path = self._failure(run_id)
        written = path.with_name(f".{path.stem}-{socket.gethostname()}-{os.getpid()}")
        try:
            written.write_text(told)
            if not path.exists():
                written.rename(path)
        except OSError:
            # The disk is full or the ledger is gone. This process still reports its own error.
            print(message, file=sys.stderr, flush=True)
        finally:
            with suppress(OSError):
                written.unlink()

    def failure(self, run_id: str) -> MegaSLMError | None:
        """The failure of a process of the run, with the exit status of the exception; None where none failed."""
        path = self._failure(run_id)
        if not path.exists():
            return None
        failure = _Failure.model_validate_json(path.read_bytes())
        kind: type[MegaSLMError] = getattr(errors, failure.kind)
        return kind(failure.message)

    def raise_if_failed(self, run_id: str) -> None:
        """Raise PeerFailed where another process of the run failed."""
        failure = self.failure(run_id)
        if failure is not None:
            raise PeerFailed(str(failure), failure.exit_status)

    def _tries(self, task: str, run_id: str) -> list[str]:
        """Processes that began a task and did not end it in order: run id, host and process id of each."""
        tries = self._tries_file(task)
        lines = tries.read_text().splitlines() if tries.exists() else []
        return [line for line in lines if line.startswith(f"{run_id} ")]

    def _tries_file(self, task: str) -> Path:
        return self._note(task).with_suffix(".tries")

    def _notes(self) -> Iterator[Path]:
        return self.folder.glob("task-*.json")

    def _note(self, task: str) -> Path:
        return self.folder / f"task-{task}.json"

    def _failure(self, run_id: str) -> Path:
        return self.folder / f"failure-{run_id}.json"


def new_run_id() -> str:
    """An id for one run of a job, shared by all of its processes."""
    return uuid.uuid4().hex[:12]


def draw_all(
    tasks: Sequence[T], draw: Callable[[T], Drawn], look: Callable[[], None], *, processes: int = 1
) -> list[T]:
    """Draw tasks until each is done, by any process, or given up. Returns those that were given up.

    `look` is called while all remaining tasks are busy; its exception ends the wait. `processes` is how many draw.
    """
    left: list[T] = []
    busy: list[T] = []

    def take(task: T) -> bool:
        drawn = draw(task)
        if drawn is Drawn.BUSY:
            return False
        if drawn is Drawn.LEFT:
            left.append(task)
        return True

    for task in tasks:
        if not take(task):
            busy.append(task)
        # The death of its process may have freed a busy task.
        _take_some(busy, take, 1)
    pause = min(_LONGEST_PAUSE_SECONDS, max(_SHORTEST_PAUSE_SECONDS, _PAUSE_SECONDS_PER_PROCESS * processes))
    while busy:
        look()
        if not _take_some(busy, take, _LOOKED_AT_ONCE):
            time.sleep(pause)
    return left


def _take_some(busy: list[T], take: Callable[[T], bool], most: int) -> bool:
    """Looks at some of the tasks and drops those that are no longer busy. Returns whether it dropped any."""
    dropped = False
    for _ in range(min(most, len(busy))):
        place = random.randrange(len(busy))
        if take(busy[place]):
            busy[place] = busy[-1]
            busy.pop()
            dropped = True
    return dropped


@contextmanager
def keeping_what_is_done(place: str | Path) -> Iterator[None]:
    """Adds to a full disk's and other system errors that finished work is kept, and to Ctrl-C.

    Raises MegaSLMError in place of an OSError, and Stopped in place of a KeyboardInterrupt.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise Stopped("told to stop by Ctrl-C; what is done is kept; start it again for the rest") from interrupt
    except OSError as error:
        raise MegaSLMError(
            f"{error.filename or place}: {error.strerror or error}; what is done is kept: mend this and run it again"
        ) from error


def _kind(error: BaseException) -> str:
    """The nearest class in megaslm.errors that is made from a message alone."""
    for kind in type(error).__mro__:
        if getattr(errors, kind.__name__, None) is kind and kind.__init__ is Exception.__init__:
            return kind.__name__
    return MegaSLMError.__name__
