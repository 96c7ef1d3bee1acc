"""The folder that a run's processes share on one host. The kernel drops a process's locks on its files when it ends.

The folder is under TMPDIR and belongs to one start of the run. Each process holds a lock on it. The next process of the
same user that opens such a folder removes those that no process holds.
"""

import errno
import fcntl
import math
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from megaslm.errors import DataError
from megaslm.files import Busy, locked, unfinished
from megaslm.stream.order import RowOrder

_HELD = "held"
_FAILURE = "failure"
_READER = ".reader"
# A loader process notices within a second that its rank was killed. Until then it holds the rank's locks.
_ORPHANS_SECONDS = 15.0
_LOOK_AGAIN_SECONDS = 0.2
_MIB = 1 << 20


class HostFolder:
    """The folder as one process of the host holds it. Forked processes hold it too."""

    def __init__(self, name: str) -> None:
        """Makes the folder of that name, or joins the processes that hold it.

        Raises DataError where the folder cannot be made.
        """
        self.name = name
        self.path = _parent() / name
        with self._saying_where(), _alone():
            for other in _parent().glob("*/"):
                _remove_if_unheld(other)
            self.path.mkdir(exist_ok=True)
            held = (self.path / _HELD).open("a")
            fcntl.flock(held, fcntl.LOCK_SH)
        self._holds: list[TextIO] = [held]
        # Runs when this object is freed or its process exits normally. The last one removes the folder.
        weakref.finalize(self, _leave, self.path, self._holds, os.getpid())

    def order_of(self, order: RowOrder, epoch: int) -> NDArray[np.integer]:
        """An epoch's rows in order, (order.rows_in(epoch),), memory-mapped. The first process to ask writes them.

        Raises DataError where there is no room for them.
        """
        path = self.path / f"order-{epoch}"
        with self._saying_where(), locked(self.path / "order.lock", patience_seconds=math.inf, busy=""):
            if not path.exists():
                for other in self.path.glob("order-*"):
                    other.unlink()
                self._write_order(order, epoch, path)
            # Mapped before another process, at another epoch, removes the file.
            return np.memmap(path, dtype=order.dtype, mode="r").view(np.ndarray)

    def require_room(self, order: RowOrder) -> None:
        """Raise DataError unless an epoch's order fits on the disk."""
        needed, free = order.rows_per_epoch * order.dtype.itemsize, shutil.disk_usage(self.path).free
        if needed > free:
            raise DataError(
                f"{self.path}: the order of an epoch's {order.rows_per_epoch:,} rows takes {needed / _MIB:,.0f} MiB, "
                f"but {free / _MIB:,.0f} MiB are free; make room there, or name another folder in TMPDIR"
            )

    def claim_cache(self, folder: Path) -> bool:
        """Keeps other runs from fetching into `folder` while a process of this run lives.

        Returns whether this process is the first. Raises DataError where another run on this host fetches into it.
        """
        try:
            reader = (folder / _READER).open("a+")
        except OSError as error:
            raise DataError(f"{folder}: {error.strerror or error}; the cache must be a writable folder") from error
        self._holds.append(reader)
        deadline = time.monotonic() + _ORPHANS_SECONDS
        while True:
            with self._saying_where(), _alone():
                is_first = _try_lock(reader, fcntl.LOCK_EX)
                if is_first:
                    reader.truncate(0)
                    reader.write(self.name)
                    reader.flush()
                reader.seek(0)
                if reader.read() == self.name and _try_lock(reader, fcntl.LOCK_SH):
                    return is_first
            if time.monotonic() > deadline:
                raise DataError(
                    f"{folder}: another run on this host fetches into it; wait for it, or choose another cache"
                )
            time.sleep(_LOOK_AGAIN_SECONDS)

    def fail(self, message: str) -> None:
        """Tells all processes of the host why one of them cannot continue. The first message is kept."""
        with suppress(OSError), (self.path / _FAILURE).open("x") as file:
            file.write(message)

    def failure(self) -> str | None:
        """Why a process of the host cannot continue; None if all can."""
        path = self.path / _FAILURE
        return (path.read_text() or None) if path.exists() else None

    def _write_order(self, order: RowOrder, epoch: int, path: Path) -> None:
        with unfinished(path).open("w+b") as file:
            # Reserve the space first: a write through the map would end the process by a signal if the disk is full.
            os.posix_fallocate(file.fileno(), 0, order.rows_in(epoch) * order.dtype.itemsize)
            order.fill(epoch, np.memmap(file, dtype=order.dtype, mode="r+").view(np.ndarray))
        unfinished(path).rename(path)

    @contextmanager
    def _saying_where(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self.path}: {error.strerror or error}; make room there, or name another folder in TMPDIR"
            ) from error


def _parent() -> Path:
    return Path(tempfile.gettempdir()) / f"megaslm-{os.getuid()}"


@contextmanager
def _alone() -> Iterator[None]:
    _parent().mkdir(mode=0o700, parents=True, exist_ok=True)
    # Another user who owns this folder could change the files that are read.
    if _parent().lstat().st_uid != os.getuid():
        raise PermissionError(errno.EPERM, f"{_parent()} belongs to another user")
    with locked(_parent() / "lock", patience_seconds=math.inf, busy=""):
        yield


def _leave(folder: Path, holds: list[TextIO], process: int) -> None:
    if process == os.getpid():
        with suppress(OSError, Busy), _alone():
            for file in holds:
                file.close()
            _remove_if_unheld(folder)


def _remove_if_unheld(folder: Path) -> None:
    try:
        with locked(folder / _HELD, busy=""):
            shutil.rmtree(folder)
    except Busy:
        pass


def _try_lock(file: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
