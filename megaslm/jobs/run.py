"""One run of a job: its tasks that are not done, its progress, and the processes that draw the tasks."""

import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Generic, TypeVar

from megaslm.errors import MegaSLMError
from megaslm.files import unfinished
from megaslm.jobs.ledger import Ledger, keeping_what_is_done
from megaslm.jobs.progress import PROGRESS, JobProgress, Watcher, tallies_of
from megaslm.jobs.ray_workers import RayCluster
from megaslm.jobs.workers import run_workers

T = TypeVar("T")
# Hundreds of processes may have a tally each, on a network file system.
_PUBLISH_SECONDS = 1.0


class JobRun(Generic[T]):
    """A run, in the one process that reports for all of them."""

    def __init__(
        self,
        ledger: Ledger[Any],
        run_id: str,
        tasks: Sequence[T],
        watcher: Watcher,
        *,
        job: str,
        unit: str,
        size: Callable[[T], int],
        is_done: Callable[[T], bool],
    ) -> None:
        """`job` is the verb. `size` is a task's, in `unit`, which is a key of `JobProgress.counts`."""
        self._ledger, self.id, self._tasks, self._watcher = ledger, run_id, tasks, watcher
        self._job, self._unit, self._is_done = job, unit, is_done
        self.waiting = [task for task in tasks if not is_done(task)]
        """The tasks that earlier runs have not finished."""
        self._total = sum(map(size, tasks))
        self._before = self._total - sum(map(size, self.waiting))
        self._began = time.monotonic()
        self._published_at = -_PUBLISH_SECONDS

    def publish(self, *, at_once: bool = False, all_done: bool = False) -> None:
        """Write `progress.json` and show it, once a second or `at_once`.

        If `all_done`, every task is done, although another process may not have written it into its tally yet.
        """
        now = time.monotonic()
        if not (at_once or all_done) and now - self._published_at < _PUBLISH_SECONDS:
            return
        self._published_at = now
        folder, tasks = self._ledger.folder, len(self._tasks)
        sums = tallies_of(folder, self.id)
        counts = sum((Counter(each.counts) + Counter(each.current) for each in sums), Counter[str]())
        if all_done:
            counts[self._unit] = self._total - self._before
        progress = JobProgress(
            job=self._job,
            unit=self._unit,
            total=self._total,
            before=self._before,
            tasks=tasks,
            tasks_done=tasks if all_done else tasks - len(self.waiting) + sum(each.tasks for each in sums),
            tasks_retried=sum(each.retried for each in sums),
            tasks_left=max((each.left for each in sums), default=0),
            counts=counts,
            processes=len(sums),
            seconds=now - self._began,
            written=datetime.now(UTC),
        )
        # Several runs, one per share of the dataset, may write it at the same moment.
        temporary = unfinished(folder / f"{self.id}-{PROGRESS}")
        temporary.write_text(progress.model_dump_json(indent=1) + "\n")
        temporary.replace(folder / PROGRESS)
        self._watcher.show(progress)

    def in_processes(
        self,
        count: int,
        work: Callable[[int], None],
        *,
        ray: RayCluster | None = None,
        gpus: int = 0,
        preload: Sequence[str] = (),
        look: Callable[[], None] = lambda: None,
    ) -> None:
        """Run `work` in `count` processes until no task is left, and raise the exception of one that failed.

        The processes are on a Ray cluster, each with `gpus` GPUs, or on this machine. Further arguments, and what is
        raised, are those of `run_workers` and `RayCluster.run`.
        """

        def look_at_all() -> None:
            look()
            self.publish()
            failure = self._ledger.failure(self.id)
            if failure is not None:
                raise failure

        def tasks_done() -> int:
            return sum(map(self._is_done, self._tasks))

        telling = partial(_telling, self._ledger, self.id, work)
        if ray is None:
            run_workers(count, telling, preload=preload, look=look_at_all, tasks_done=tasks_done)
        else:
            folder = self._ledger.folder
            ray.run(count, telling, gpus=gpus, folder=folder, look=look_at_all, tasks_done=tasks_done)
        self._ledger.look_again()
        look_at_all()


def _telling(ledger: Ledger[Any], run_id: str, work: Callable[[int], None], number: int) -> None:
    """Does the work of one process. The ledger gets its exception."""
    try:
        with keeping_what_is_done(ledger.place):
            work(number)
    except BaseException as error:
        if not isinstance(error, MegaSLMError):
            traceback.print_exc()
        ledger.fail(run_id, error)
