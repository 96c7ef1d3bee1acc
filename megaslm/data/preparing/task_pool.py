"""The tasks of prepare on all cores of one machine: a worker that dies is noticed, and its task is done again."""

import ctypes
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import astuple, fields
from functools import partial
from pathlib import Path

from megaslm.data.preparing.prepare_task import Job, TaskProgress, run_task
from megaslm.data.preparing.workplace import Workplace
from megaslm.errors import MegaSLMError

OnProgress = Callable[[list[TaskProgress], list[TaskProgress]], None]
"""Called with how far the tasks have come that are being done, and with those done since the last call."""

_LOOK_SECONDS = 0.25
_MOST_DEATHS_ALONE = 3
# What takes seconds to import is imported once, by the server from which all workers are forked.
_PRELOADED = ["megaslm.data.preparing.prepare_task", "megaslm.data.stream"]


def run_tasks(jobs: Sequence[Job], output: Path, workers: int, on_progress: OnProgress) -> None:
    """Do tasks; what each did is noted in the workplace of `output`.

    Raises what a task raises, after the running ones have been stopped; MegaSLMError where a task kills its worker even
    when it is the only one.
    """
    if min(workers, len(jobs)) > 1:
        _Pool(jobs, output, min(workers, len(jobs)), on_progress).run()
        return
    for job in jobs:
        on_progress([], [complete(job, Workplace(output), lambda progress: on_progress([progress], []))])


def complete(job: Job, workplace: Workplace, report: Callable[[TaskProgress], None]) -> TaskProgress:
    """Do one task; gives how far it came in the end."""
    outcome = workplace.complete(job.task.name, partial(run_task, job, report))
    return TaskProgress(job.task.input_bytes, outcome.text_bytes, outcome.tokens)


class _Board:
    """Memory that the processes share: what each running task reports, and whether all are to stop.

    There is no lock to be left locked by a worker that dies: each number has one writer.
    """

    def __init__(self, tasks_at_once: int) -> None:
        self._width = len(fields(TaskProgress))
        self._numbers = multiprocessing.get_context("forkserver").RawArray(
            ctypes.c_int64, 1 + tasks_at_once * self._width
        )

    def report(self, slot: int, progress: TaskProgress) -> None:
        """Called by a worker. Raises _Stopped where the task should not go on."""
        start = 1 + slot * self._width
        self._numbers[start : start + self._width] = list(astuple(progress))
        if self._numbers[0]:
            raise _Stopped

    def read(self, slot: int) -> TaskProgress:
        start = 1 + slot * self._width
        return TaskProgress(*self._numbers[start : start + self._width])

    def clear(self, slot: int) -> None:
        start = 1 + slot * self._width
        self._numbers[start : start + self._width] = list(astuple(TaskProgress()))

    def stop_all(self) -> None:
        self._numbers[0] = 1


class _Stopped(Exception):
    """Another task failed, or the run was interrupted."""


class _Pool:
    """Keeps as many tasks running as there are workers.

    When a worker dies the library gives up on all of them, and nobody knows whose task it was. Each of those that were
    running is then done alone, so that one that kills its worker is found out, and the others are not blamed.
    """

    def __init__(self, jobs: Iterable[Job], output: Path, workers: int, on_progress: OnProgress) -> None:
        self._output = output
        self._workers = workers
        self._on_progress = on_progress
        self._board = _Board(workers)
        self._free_slots = list(range(workers))
        self._waiting = deque(jobs)
        self._suspects: deque[Job] = deque()
        self._deaths_alone: Counter[int] = Counter()
        self._running: dict[Future[TaskProgress], tuple[Job, int]] = {}
        self._executor = self._start()

    def run(self) -> None:
        try:
            while self._waiting or self._suspects or self._running:
                self._fill()
                ended, _ = wait(self._running, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED)
                if any(map(_is_broken, ended)):
                    ended, _ = wait(self._running)
                finished = self._take(ended)
                self._on_progress([self._board.read(slot) for _, slot in self._running.values()], finished)
        finally:
            self._board.stop_all()
            self._executor.shutdown(cancel_futures=True)

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        return ProcessPoolExecutor(self._workers, context, initializer=_start_worker, initargs=(self._board,))

    def _fill(self) -> None:
        if self._suspects:
            if not self._running:
                self._submit(self._suspects[0])
            return
        while self._waiting and self._free_slots:
            self._submit(self._waiting.popleft())

    def _submit(self, job: Job) -> None:
        slot = self._free_slots.pop()
        self._board.clear(slot)
        try:
            future = self._executor.submit(_work, job, self._output, slot)
        except BrokenProcessPool as error:
            # A worker has died since the last look; the running tasks will say the same.
            future = Future()
            future.set_exception(error)
        self._running[future] = (job, slot)

    def _take(self, ended: Iterable[Future[TaskProgress]]) -> list[TaskProgress]:
        """Take ended tasks off the list of running ones, and give those that are done."""
        was_alone = len(self._running) == 1
        done, died = [], []
        for future in ended:
            job, slot = self._running.pop(future)
            self._free_slots.append(slot)
            if _is_broken(future):
                died.append(job)
            else:
                done.append(future.result())
                if self._suspects:
                    self._suspects.popleft()
        if died:
            self._after_a_death(died, was_alone=was_alone)
        return done

    def _after_a_death(self, jobs: Sequence[Job], *, was_alone: bool) -> None:
        if was_alone:
            self._deaths_alone[jobs[0].task.number] += 1
            if self._deaths_alone[jobs[0].task.number] == _MOST_DEATHS_ALONE:
                raise MegaSLMError(_why_it_dies(jobs[0]))
        if not self._suspects:
            self._suspects.extend(jobs)
        self._executor.shutdown()
        self._executor = self._start()


def _is_broken(future: Future[TaskProgress]) -> bool:
    return isinstance(future.exception(), BrokenProcessPool)


def _why_it_dies(job: Job) -> str:
    first, last = job.task.pieces[0], job.task.pieces[-1]
    upto = "" if first.file == last.file else f" to {last.file.path}"
    return (
        f"a worker process of prepare died {_MOST_DEATHS_ALONE} times over {first.file.path}{upto} (task "
        f"{job.task.number}, from byte {first.start}), with no other task running: out of memory, killed from outside, "
        'or started from a script without `if __name__ == "__main__":`; what is done is kept: run it again'
    )


_board: _Board
"""In a worker: where it reports."""


def _start_worker(board: _Board) -> None:
    global _board
    _board = board
    # The processes share the cores among them; threads of their own would only contend.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # An interruption from the keyboard reaches the whole group; the first process sees to it that all stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(job: Job, output: Path, slot: int) -> TaskProgress:
    return complete(job, Workplace(output), partial(_board.report, slot))
