"""The progress of a job. Each process keeps a tally in a file, and one of them writes the sums to `progress.json`."""

import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from megaslm.files import read_back, unfinished

PROGRESS = "progress.json"
# Hundreds of processes may write to a network file system.
_WRITE_SECONDS = 1.0


class JobProgress(BaseModel):
    """The progress of a job, over all of its processes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    job: str
    """The job's verb."""
    unit: str
    """The unit of `total`, `before` and `done`: a key of `counts`."""
    total: int
    """All units of the job, finished ones included."""
    before: int
    """Units that earlier runs finished."""
    tasks: int
    tasks_done: int
    """Finished tasks, those of earlier runs included."""
    tasks_retried: int
    """Tasks that were restarted after the death of a process."""
    tasks_left: int
    """Tasks that were given up, because process after process died over them."""
    counts: dict[str, int]
    """The work of this run, by unit."""
    processes: int
    seconds: float
    """Seconds since this run began."""
    written: datetime
    """When this was written, in UTC."""

    @property
    def done(self) -> int:
        """Finished units of `total`."""
        return min(self.total, self.before + self.counts.get(self.unit, 0))


class Watcher(Protocol):
    """What a job reports to while it works."""

    def say(self, line: str) -> None:
        """Called with what the job does now, or what its user should know, as one line."""

    def show(self, progress: JobProgress) -> None:
        """Called about once per second, and when all tasks are done."""


class Unwatched:
    """A watcher that ignores everything."""

    def say(self, line: str) -> None:
        """Does nothing."""

    def show(self, progress: JobProgress) -> None:
        """Does nothing."""


def read_progress(folder: Path) -> JobProgress | None:
    """The progress of the job whose ledger is in `folder`; None where none was written. Raises DataError."""
    path = folder / PROGRESS
    return read_back(JobProgress, path.read_bytes(), str(path), "remove it") if path.is_file() else None


def jobs_in(output: Path) -> list[JobProgress]:
    """The progress of the jobs that make the dataset `output`, or a remote one from that folder. Raises DataError."""
    ledgers = sorted(path.parent for depth in (f".*/{PROGRESS}", f".*/.*/{PROGRESS}") for path in output.glob(depth))
    return [progress for ledger in ledgers if (progress := read_progress(ledger)) is not None]


class Sums(BaseModel):
    """The work of one process of a run."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    counts: dict[str, int] = {}
    """Of finished tasks."""
    current: dict[str, int] = {}
    """Of the current task."""
    tasks: int = 0
    retried: int = 0
    left: int = 0


class Tally:
    """The work of one process of a run. A process that replaces a dead one continues its tally."""

    def __init__(self, folder: Path, run_id: str, place: int) -> None:
        """`place` is the index of the process in its run."""
        self._path = folder / f"tally-{run_id}-{place}.json"
        self._sums = _read(self._path)
        self._sums.current = {}
        self._written_at = -_WRITE_SECONDS
        self._write()

    def report(self, **counts: int) -> None:
        """Set the counts of the current task so far."""
        self._sums.current = counts
        if time.monotonic() - self._written_at >= _WRITE_SECONDS:
            self._write()

    def end_task(self, *, retried: bool = False) -> None:
        """Add the current task to the finished ones."""
        self._sums.counts = dict(Counter(self._sums.counts) + Counter(self._sums.current))
        self._sums.current = {}
        self._sums.tasks += 1
        self._sums.retried += retried
        self._write()

    def end(self, left: int) -> None:
        """Record that the process has no more work, and that `left` tasks were given up."""
        self._sums.left = left
        self._write()

    def _write(self) -> None:
        temporary = unfinished(self._path)
        temporary.write_text(self._sums.model_dump_json())
        temporary.replace(self._path)
        self._written_at = time.monotonic()


def tallies_of(folder: Path, run_id: str) -> list[Sums]:
    """What each process of a run has written."""
    return [_read(path) for path in folder.glob(f"tally-{run_id}-*.json")]


def _read(path: Path) -> Sums:
    return Sums.model_validate_json(path.read_bytes()) if path.is_file() else Sums()
