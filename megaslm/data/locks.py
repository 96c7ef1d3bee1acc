"""Locks on files, which the kernel lets go of when whoever holds them dies."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megaslm.errors import DataError

_LOOK_AGAIN_SECONDS = 0.1


class Busy(DataError):
    """Another process holds a lock."""


@contextmanager
def locked(path: Path, *, shared: bool = False, patience_seconds: float = 0.0, busy: str) -> Iterator[None]:
    """Hold the lock of `path`, a file that is made where there is none; shared locks let one another in.

    On a file system of several hosts it keeps out other hosts too, if that file system knows locks (NFS 4, Lustre
    mounted with `flock`). Raises Busy with that message where another holds it for longer than the patience.
    """
    deadline = time.monotonic() + patience_seconds
    # For reading too, without which NFS gives no shared lock.
    with path.open("a+") as file:
        while True:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise Busy(busy) from error
                time.sleep(_LOOK_AGAIN_SECONDS)
        yield
