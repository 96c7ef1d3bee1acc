"""A loader process ends as its rank wants, and by no signal of others."""

import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

from megaslm.stream.loader import follow_rank, without_signals
from tests.forks import fork, statuses_of, wait_until

OTHERS_SIGNAL_SECONDS = 0.5


def stuck(rank_pid: int, ready: Path) -> NoReturn:
    follow_rank(rank_pid, 0)
    ready.touch()
    while True:
        time.sleep(60)


def start(ready: Path) -> BaseProcess:
    """A loader of this process that is stuck."""
    with without_signals():
        process = multiprocessing.get_context("fork").Process(target=stuck, args=(os.getpid(), ready), daemon=True)
        process.start()
    return process


@contextmanager
def loader(ready: Path) -> Iterator[BaseProcess]:
    process = start(ready)
    try:
        wait_until(ready.exists)
        yield process
    finally:
        process.kill()
        process.join()


def test_signals_of_others_are_left_to_the_rank(tmp_path: Path) -> None:
    with loader(tmp_path / "ready") as process:
        for name in ("TERM", "USR1"):
            subprocess.run(["kill", f"-{name}", str(process.pid)], check=True)
        process.join(OTHERS_SIGNAL_SECONDS)
        assert process.is_alive()


def test_its_rank_ends_it_also_where_it_is_stuck(tmp_path: Path) -> None:
    """As torch does with one that does not end by itself, and multiprocessing at the rank's exit."""
    with loader(tmp_path / "ready") as process:
        process.terminate()
        process.join(10)
        assert process.exitcode == 0


def test_it_lets_go_of_what_it_shares_with_its_rank(tmp_path: Path) -> None:
    """The rank would wait for ever for a lock of torch that a process took with it."""
    lock, ready = multiprocessing.get_context("fork").Lock(), tmp_path / "ready"

    def work(rank_pid: int) -> None:
        follow_rank(rank_pid, 0)
        with lock:
            ready.touch()
            time.sleep(OTHERS_SIGNAL_SECONDS)

    with without_signals():
        process = multiprocessing.get_context("fork").Process(target=work, args=(os.getpid(),), daemon=True)
        process.start()
    wait_until(ready.exists)
    process.terminate()
    process.join(10)
    assert process.exitcode == 0
    assert lock.acquire(timeout=10)


def test_it_ends_with_its_rank(tmp_path: Path) -> None:
    noted = tmp_path / "loader"

    def rank() -> None:
        process = start(tmp_path / "ready")
        noted.with_suffix(".new").write_text(str(process.pid))
        noted.with_suffix(".new").rename(noted)
        process.join()

    ranks = fork(rank)
    wait_until(lambda: noted.exists() and (tmp_path / "ready").exists())
    os.kill(ranks, signal.SIGKILL)
    assert statuses_of([ranks]) == [-signal.SIGKILL]
    wait_until(lambda: not is_running(int(noted.read_text())))


def is_running(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX"


def test_a_signal_that_comes_meanwhile_is_not_lost() -> None:
    came: list[int] = []
    former = signal.signal(signal.SIGUSR1, lambda number, frame: came.append(number))
    try:
        with without_signals():
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
            assert came == []
        assert came == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, former)
