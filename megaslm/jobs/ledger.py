"""The tasks of a job, in a folder that all of its processes share: what is done, and who is doing what.

A note is there of each task that is done. Whoever does a task holds its lock, which the kernel drops with the process,
so that the task of one that has died is drawn again by the next who looks. A file beside it tells who is at it, and who
has died over it.
"""

import math
import os
import random
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
from megaslm.errors import MegaSLMError, PeerFailed
from megaslm.files import Busy, locked, read_back, write_file
from megaslm.jobs.progress import PROGRESS, Tally

Outcome = TypeVar("Outcome", bound=BaseModel)
T = TypeVar("T")

MOST_DEATHS = 3
"""A task whose process has died so often within one run of its job is left."""
_PATIENCE_SECONDS = 120.0
"""How long a file system of several hosts may keep the lock of a host that died."""
# Hundreds of processes on a network file system would load its server if all that wait looked at all that others do.
# They look at a few tasks at a time, and more seldom the more they are.
_LOOKED_AT_ONCE = 8
_PAUSE_SECONDS_PER_PROCESS = 0.01
_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 0.8


class Drawn(Enum):
    """What came of drawing a task."""

    DONE = "done"
    """Now, or before."""
    BUSY = "busy"
    """Another process is at it."""
    LEFT = "left"
    """It has ended `MOST_DEATHS` processes of this run."""


class _Failure(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    message: str
    exit_status: int


class Ledger(Generic[Outcome]):
    """The ledger of one job."""

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

    def outcomes(self) -> dict[str, Outcome]:
        """What each task did that is done."""
        tasks = sorted(note.stem.removeprefix("task-") for note in self._notes())
        return {task: outcome for task in tasks if (outcome := self.outcome(task)) is not None}

    def has_outcomes(self) -> bool:
        """Whether any task is done."""
        return any(self._notes())

    def forget_all(self) -> None:
        """Every task is to be done again. Raises Busy where a process is still at one."""
        for note in self._notes():
            busy = f"{self._place}: {note.stem} is being done by another process; wait for it or stop it"
            with locked(note.with_suffix(".lock"), patience_seconds=_PATIENCE_SECONDS, busy=busy):
                note.unlink()

    def forget_runs(self) -> None:
        """What earlier runs of the job have left of their progress, their failures and their dead is gone."""
        for pattern in ("tally-*.json", "failure-*.json", "task-*.tries", PROGRESS):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    @contextmanager
    def setting_up(self) -> Iterator[None]:
        """For what one process does and the others wait for."""
        with locked(self.folder / "setup.lock", patience_seconds=math.inf, busy=""):
            yield

    def draw(self, task: str, do: Callable[[], Outcome], run_id: str, tally: Tally | None = None) -> Drawn:
        """Do a task and note what it did, unless that is done, another process is at it, or it is to be left.

        `run_id` is that of this run of the job. What is done is counted in `tally`. Raises what `do` raises.
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
                # Not reached by a process that is killed.
                tries.unlink(missing_ok=True)
            if tally is not None:
                tally.end_task(retried=bool(deaths))
            return Drawn.DONE
        return Drawn.BUSY

    def is_left(self, task: str, run_id: str) -> bool:
        """Whether so many processes of a run have died over a task that it is to be left."""
        return not self.is_done(task) and len(self._tries(task, run_id)) >= MOST_DEATHS

    def look_again(self) -> None:
        """A file system of several hosts remembers for a while that there was no note, but not past an opening."""
        os.close(os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY))

    def fail(self, run_id: str, error: BaseException) -> None:
        """Tell all processes of a run that one of them cannot go on, and why; the first message stays."""
        kind = _kind(error)
        message = str(error) if isinstance(error, MegaSLMError) else f"{type(error).__name__}: {error}"
        status = error.exit_status if isinstance(error, MegaSLMError) else 1
        told = _Failure(kind=kind, message=message, exit_status=status).model_dump_json()
        path = self._failure(run_id)
        written = path.with_name(f".{path.stem}-{socket.gethostname()}-{os.getpid()}")
        try:
            written.write_text(told)
            if not path.exists():
                written.rename(path)
        except OSError:
            # A full disk, or a ledger that is gone: at least this process says it.
            print(message, file=sys.stderr, flush=True)
        finally:
            with suppress(OSError):
                written.unlink()

    def failure(self, run_id: str) -> MegaSLMError | None:
        """Why a process of a run cannot go on, as it has raised it or nearly so; null where all can."""
        path = self._failure(run_id)
        if not path.exists():
            return None
        failure = _Failure.model_validate_json(path.read_bytes())
        kind: type[MegaSLMError] = getattr(errors, failure.kind, MegaSLMError)
        if kind.exit_status != failure.exit_status:
            return PeerFailed(failure.message, failure.exit_status)
        return kind(failure.message)

    def raise_if_failed(self, run_id: str) -> None:
        """Raise PeerFailed where another process of the run cannot go on."""
        failure = self.failure(run_id)
        if failure is not None:
            raise PeerFailed(str(failure), failure.exit_status)

    def _tries(self, task: str, run_id: str) -> list[str]:
        """Processes that began a task and did not end it in order: `run_id`, host and process id of each."""
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
    """For one run of a job, and all of its processes."""
    return uuid.uuid4().hex[:12]


def draw_all(
    tasks: Sequence[T], draw: Callable[[T], Drawn], look: Callable[[], None], *, processes: int = 1
) -> list[T]:
    """Draw tasks until each is done, by whomever, or left; gives those that were left.

    `look` is called while all that is not done is another's: it raises what ends the wait. So many `processes` do so.
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
        # One that another is at may have come free by its death.
        _take_some(busy, take, 1)
    pause = min(_LONGEST_PAUSE_SECONDS, max(_SHORTEST_PAUSE_SECONDS, _PAUSE_SECONDS_PER_PROCESS * processes))
    while busy:
        look()
        if not _take_some(busy, take, _LOOKED_AT_ONCE):
            time.sleep(pause)
    return left


def _take_some(busy: list[T], take: Callable[[T], bool], most: int) -> bool:
    """Looks at some of the tasks and drops those that are no more busy; whether there are any such."""
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
    """Says of a full disk, and what else the system refuses, that nothing is lost."""
    try:
        yield
    except OSError as error:
        raise MegaSLMError(
            f"{error.filename or place}: {error.strerror or error}; what is done is kept: mend this and run it again"
        ) from error


def _kind(error: BaseException) -> str:
    """The nearest class of megaslm.errors that is made of a message alone and ends a process alike; "" for none."""
    for kind in type(error).__mro__:
        if getattr(errors, kind.__name__, None) is kind and kind.__init__ is Exception.__init__:
            assert issubclass(kind, MegaSLMError)
            alike = isinstance(error, MegaSLMError) and kind.exit_status == error.exit_status
            return kind.__name__ if alike else ""
    return ""
