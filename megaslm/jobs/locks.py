"""Locks on files, which the kernel lets go of when whoever holds them dies."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megaslm.errors import DataError

_LOOK_AGAIN_SECONDS = 0.1
# The files that this process has locked or waits for: their paths, and the threads that do so.
_open: dict[int, tuple[Path, int]] = {}


class Busy(DataError):
    """Another process holds a lock."""


@contextmanager
def locked(path: Path, *, shared: bool = False, patience_seconds: float = 0.0, busy: str) -> Iterator[None]:
    """Hold the lock of `path`, a file that is made where there is none; shared locks let one another in.

    On a file system of several hosts it keeps out other hosts too, if that file system knows locks (NFS 4, Lustre
    mounted with `flock`). A process that the holding thread forks holds the lock too; one that another thread forks
    does not.

    Raises:
        Busy: with that message, where another holds it for longer than the patience; at once where this thread does.
        DataError: the file system has no locks.
        OSError: the file cannot be opened.
    """
    deadline = time.monotonic() + patience_seconds
    mine = path, threading.get_ident()
    if mine in list(_open.values()):
        # A finalizer, run by the garbage collector within the context: waiting would have no end.
        raise Busy(busy)
    # For reading too, without which NFS gives no shared lock.
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _open[file] = mine
    try:
        while True:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise Busy(busy) from error
                time.sleep(_LOOK_AGAIN_SECONDS)
            except OSError as error:
                raise DataError(
                    f"{path}: its file system gives no locks ({error.strerror}), by which processes keep out of one "
                    "another's way; use a folder on one that does, such as a local disk, or mount it with locks"
                ) from error
        yield
    finally:
        del _open[file]
        os.close(file)


def _forget_other_threads() -> None:
    """Closes, in a child, what only threads of its parent would have let go of: it would hold their locks for ever."""
    for file, (_, thread) in list(_open.items()):
        if thread != threading.get_ident():
            del _open[file]
            os.close(file)


os.register_at_fork(after_in_child=_forget_other_threads)
