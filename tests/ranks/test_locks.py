"""Locks on files: who holds them when a process forks, and who waits for itself."""

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest

from megaslm.errors import DataError
from megaslm.files import Busy, locked
from tests.forks import fork, statuses_of
from tests.messages import Says


def test_a_child_does_not_hold_what_another_thread_of_its_parent_held(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    has_it, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(path, busy="busy"):
            has_it.set()
            let_go.wait()

    def wait() -> None:
        with locked(path, patience_seconds=30, busy="busy"):
            pass

    thread = threading.Thread(target=hold)
    thread.start()
    has_it.wait()
    child = fork(wait)
    let_go.set()
    thread.join()
    assert statuses_of([child]) == [0]


def test_a_child_holds_what_the_thread_that_forked_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    go_on, end = tmp_path / "go-on", threading.Event()

    def live() -> None:
        while not go_on.exists():
            end.wait(0.01)

    with locked(path, busy="busy"):
        child = fork(live)
    with pytest.raises(Busy), locked(path, busy="busy"):
        pass
    go_on.touch()
    assert statuses_of([child]) == [0]
    with locked(path, busy="busy"):
        pass


def test_a_thread_that_holds_a_lock_does_not_wait_for_itself(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock", busy="busy"),
        pytest.raises(Busy),
        locked(tmp_path / "lock", patience_seconds=60, busy="busy"),
    ):
        pass
    with locked(tmp_path / "lock", busy="busy"):
        pass


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Says) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(DataError) as refused, locked(tmp_path / "lock", busy=""):
        pass
    says(refused, tmp_path / "lock", os.strerror(errno.ENOLCK))
    monkeypatch.undo()
    with locked(tmp_path / "lock", busy=""):
        pass
