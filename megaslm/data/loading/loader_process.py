"""The processes that read ahead for a rank: they end when it tells them to or ends itself, and by no one else's signal.

Launchers and schedulers signal all processes of a job. The rank answers; it could not if its loaders were gone by then.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import NoReturn

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_LOOK_SECONDS = 1.0


@contextmanager
def without_signals() -> Iterator[None]:
    """Within the context this thread, and the processes that it begins, do not get SIGTERM and SIGUSR1.

    Its own process loses none: another thread gets them, or this one at the context's end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def begun_processes() -> Iterator[list[BaseProcess]]:
    """After the context, the list holds the processes that were begun within it."""
    before = set(multiprocessing.active_children())
    begun: list[BaseProcess] = []
    yield begun
    begun += set(multiprocessing.active_children()) - before


def follow_rank(rank_pid: int, worker: int) -> None:
    """Called in a process that was begun `without_signals`, with its number: from here on it follows its rank's."""
    threading.Thread(target=_follow, args=(rank_pid,), name=f"loader-{worker}", daemon=True).start()


def _follow(rank_pid: int) -> NoReturn:
    """Ends this process with the rank's, or by a SIGTERM that comes from there, also where its main thread is stuck."""
    while os.getppid() == rank_pid:
        told = signal.sigtimedwait(_SIGNALS, _LOOK_SECONDS)
        if told is not None and told.si_signo == signal.SIGTERM and told.si_pid == rank_pid:
            break
    os._exit(0)
