"""Processes of one machine that share the tasks of a job. A process that dies is replaced."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess

from megaslm.errors import MegaSLMError

_LOOK_SECONDS = 0.25
# More deaths than a few tasks that kill their processes cause.
_MOST_DEATHS_IN_A_ROW = 30


def run_workers(
    count: int,
    work: Callable[[int], None],
    *,
    preload: Sequence[str],
    look: Callable[[], None],
    tasks_done: Callable[[], int],
) -> None:
    """Run `work`, which can be pickled, in `count` processes with the numbers from 0 on, until each has returned.

    Args:
        count: number of processes.
        work: draws tasks until there are none. It must not raise; it reports failures in the ledger.
        preload: modules that are imported once, by the server from which all processes are forked.
        look: called some times per second; its exception ends the processes and is raised.
        tasks_done: returns the number of finished tasks.

    Raises:
        MegaSLMError: one process after the other dies, and no task is done meanwhile.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))

    def start(number: int) -> ForkServerProcess:
        process = context.Process(target=_run, args=(work, number), name=f"worker-{number}")
        process.start()
        return process

    running = {number: start(number) for number in range(count)}
    deaths = DeathWatch(tasks_done)
    try:
        while running:
            wait([process.sentinel for process in running.values()], timeout=_LOOK_SECONDS)
            look()
            for number, process in list(running.items()):
                if process.is_alive():
                    continue
                process.join()
                if process.exitcode == 0:
                    del running[number]
                    continue
                deaths.count(_how(process.exitcode))
                running[number] = start(number)
    finally:
        for process in running.values():
            process.kill()
        for process in running.values():
            process.join()


class DeathWatch:
    """Counts processes that die one after the other while no task gets done."""

    def __init__(self, tasks_done: Callable[[], int]) -> None:
        self._tasks_done = tasks_done
        self._deaths, self._done = 0, tasks_done()

    def count(self, how: str) -> None:
        """Counts a death, which `how` describes. Raises MegaSLMError after too many."""
        before, self._done = self._done, self._tasks_done()
        self._deaths = 1 if self._done > before else self._deaths + 1
        if self._deaths == _MOST_DEATHS_IN_A_ROW:
            raise MegaSLMError(
                f"worker processes died {self._deaths} times (the last: {how}) and did no task meanwhile: out of "
                'memory, killed from outside, or started from a script without `if __name__ == "__main__":`; what is '
                "done is kept: run it again"
            )


def _run(work: Callable[[int], None], number: int) -> None:
    # The processes share the cores; further threads would only contend.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Ctrl-C reaches the whole process group; the first process makes sure that all stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    work(number)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _how(exitcode: int | None) -> str:
    return f"signal {-exitcode}" if exitcode is not None and exitcode < 0 else f"status {exitcode}"
