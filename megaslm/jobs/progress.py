"""How far a job has come: each process keeps a tally in a file, and one of them adds up and writes `progress.json`."""

import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from megaslm.files import read_back, unfinished

PROGRESS = "progress.json"
# By hundreds of processes, maybe, on a network file system.
_WRITE_SECONDS = 1.0
_PUBLISH_SECONDS = 1.0


class JobProgress(BaseModel):
    """How far a job has come, over all of its processes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    job: str
    """The verb that does it."""
    unit: str
    """Of what `total`, `before` and `done` count: a key of `counts`."""
    total: int
    """To be done, what earlier runs did included."""
    before: int
    """Done by earlier runs."""
    tasks: int
    """In all."""
    tasks_done: int
    """Those of earlier runs included."""
    tasks_retried: int
    """Begun again after the death of a process."""
    tasks_left: int
    """Given up, because process after process died over them."""
    counts: dict[str, int]
    """What this run has done, by what is counted."""
    processes: int
    """That work on it."""
    seconds: float
    """Since this run began."""
    written: datetime
    """When this was so, in UTC."""

    @property
    def done(self) -> int:
        """Of the total."""
        return min(self.total, self.before + self.counts.get(self.unit, 0))


def read_progress(folder: Path) -> JobProgress | None:
    """The progress of the job whose ledger is in `folder`; null where none was written. Raises DataError."""
    path = folder / PROGRESS
    return read_back(JobProgress, path.read_bytes(), str(path), "remove it") if path.is_file() else None


def jobs_in(output: Path) -> list[JobProgress]:
    """The progress of the jobs that make a dataset in `output`, or work for a remote one there. Raises DataError."""
    ledgers = sorted(path.parent for depth in (f".*/{PROGRESS}", f".*/.*/{PROGRESS}") for path in output.glob(depth))
    return [progress for ledger in ledgers if (progress := read_progress(ledger)) is not None]


class _Sums(BaseModel):
    model_config = ConfigDict(extra="forbid")

    counts: dict[str, int] = {}
    """Of the tasks that are done."""
    current: dict[str, int] = {}
    """Of the one that is being done."""
    tasks: int = 0
    retried: int = 0
    left: int = 0


class Tally:
    """What one process of a run has done; a process that takes the place of one that died goes on with its tally."""

    def __init__(self, folder: Path, run_id: str, place: int) -> None:
        """`place` is the process's number among those of its run."""
        self._path = folder / f"tally-{run_id}-{place}.json"
        self._sums = _read(self._path)
        self._sums.current = {}
        self._written_at = -_WRITE_SECONDS
        self._write()

    def report(self, **counts: int) -> None:
        """How far the task that is being done has come."""
        self._sums.current = counts
        if time.monotonic() - self._written_at >= _WRITE_SECONDS:
            self._write()

    def end_task(self, *, retried: bool = False) -> None:
        """The task is done that was last reported on."""
        self._sums.counts = dict(Counter(self._sums.counts) + Counter(self._sums.current))
        self._sums.current = {}
        self._sums.tasks += 1
        self._sums.retried += retried
        self._write()

    def end(self, left: int) -> None:
        """There is nothing more to do; so many tasks were left."""
        self._sums.left = left
        self._write()

    def _write(self) -> None:
        temporary = unfinished(self._path)
        temporary.write_text(self._sums.model_dump_json())
        temporary.replace(self._path)
        self._written_at = time.monotonic()


class Publisher:
    """Adds up the tallies of a run."""

    def __init__(
        self, folder: Path, run_id: str, *, job: str, unit: str, total: int, before: int, tasks: int, tasks_before: int
    ) -> None:
        """For the run's first process; of the numbers `JobProgress` tells."""
        self._folder, self._run_id = folder, run_id
        self._job, self._unit, self._total, self._before = job, unit, total, before
        self._tasks, self._tasks_before = tasks, tasks_before
        self._began = time.monotonic()
        self._published_at = -_PUBLISH_SECONDS

    def publish(self, *, at_once: bool = False) -> JobProgress | None:
        """How far the run has come, written to `progress.json` too: once a second or at once; else null."""
        now = time.monotonic()
        if not at_once and now - self._published_at < _PUBLISH_SECONDS:
            return None
        self._published_at = now
        sums = [_read(path) for path in self._folder.glob(f"tally-{self._run_id}-*.json")]
        progress = JobProgress(
            job=self._job,
            unit=self._unit,
            total=self._total,
            before=self._before,
            tasks=self._tasks,
            tasks_done=self._tasks_before + sum(each.tasks for each in sums),
            tasks_retried=sum(each.retried for each in sums),
            tasks_left=max((each.left for each in sums), default=0),
            counts=sum((Counter(each.counts) + Counter(each.current) for each in sums), Counter()),
            processes=len(sums),
            seconds=now - self._began,
            written=datetime.now(UTC),
        )
        # Shares of one dataset, each a run of its own, may write it at the same moment.
        temporary = unfinished(self._folder / f"{self._run_id}-{PROGRESS}")
        temporary.write_text(progress.model_dump_json(indent=1) + "\n")
        temporary.replace(self._folder / PROGRESS)
        return progress


def _read(path: Path) -> _Sums:
    return _Sums.model_validate_json(path.read_bytes()) if path.is_file() else _Sums()
