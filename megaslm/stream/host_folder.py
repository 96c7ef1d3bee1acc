"""The folder that a run's processes share on one host. The kernel drops a process's locks on its files when it ends.

The folder is under TMPDIR and belongs to one start of the run. Each process holds a lock on it. The next process of the
same user that opens such a folder removes those that no process holds. A cache has such a folder for the run that
fetches into it.
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
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from megaslm.errors import DataError
from megaslm.files import Busy, locked, unfinished
from megaslm.stream.order import RowOrder

_HELD = "held"
_FAILURE = "failure"
_READERS = ".readers"
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
        parent = Path(tempfile.gettempdir()) / f"megaslm-{os.getuid()}"
        self.path = parent / name
        self._held: dict[Path, TextIO] = {}
        # Runs when this object is freed or its process exits normally. The last one removes the folder.
        weakref.finalize(self, _leave, self._held, os.getpid())
        with self._saying_where():
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Another user who owns the parent could change the files that are read.
            if parent.lstat().st_uid != os.getuid():
                raise PermissionError(errno.EPERM, f"{parent} belongs to another user")
            self._hold(self.path)

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

    def require_room(self, order: RowOrder, total_rows: int) -> None:
        """Raise DataError unless the disk has room for the orders of a run of `total_rows` rows.

        A run of more than one epoch needs room for two: the next order is written while processes still map the last
        one, and an unlinked file keeps its space until no process maps it.
        """
        needed, free = order.rows_per_epoch * order.dtype.itemsize, shutil.disk_usage(self.path).free
        orders = f"the order of an epoch's {order.rows_per_epoch:,} rows takes"
        if total_rows > order.rows_per_epoch:
            needed *= 2
            orders = f"the orders of two consecutive epochs, each of {order.rows_per_epoch:,} rows, take"
        if needed > free:
            raise DataError(
                f"{self.path}: {orders} {needed / _MIB:,.0f} MiB, but {free / _MIB:,.0f} MiB are free; make room "
                "there, or name another folder in TMPDIR"
            )

    def claim_cache(self, folder: Path) -> bool:
        """Keeps other runs from fetching into `folder` while a process of this run lives.

        Returns whether this process is the first. Raises DataError where another run on this host fetches into it.
        """
        mine, deadline = folder / _READERS / self.path.name, time.monotonic() + _ORPHANS_SECONDS
        try:
            mine.parent.mkdir(exist_ok=True)
            while (is_first := self._hold(mine, alone=True)) is None:
                if time.monotonic() > deadline:
                    raise DataError(
                        f"{folder}: another run on this host fetches into it; wait for it, or choose another cache"
                    )
                time.sleep(_LOOK_AGAIN_SECONDS)
        except OSError as error:
            raise DataError(f"{folder}: {error.strerror or error}; the cache must be a writable folder") from error
        return is_first

    def fail(self, message: str) -> None:
        """Tells all processes of the host why one of them cannot continue. The first message is kept."""
        with suppress(OSError), (self.path / _FAILURE).open("x") as file:
            file.write(message)

    def failure(self) -> str | None:
        """Why a process of the host cannot continue; None if all can."""
        path = self.path / _FAILURE
        return (path.read_text() or None) if path.exists() else None

    def _hold(self, folder: Path, *, alone: bool = False) -> bool | None:
        """Holds `folder` until this object ends. Removes the folders beside it that no process holds.

        Returns whether this process is the first to hold it. None, and holds nothing, if it must be `alone` and others
        are held beside it.
        """
        with _alone_in(folder.parent):
            others = [other for other in folder.parent.glob("*/") if not _removed(other)]
            if alone and set(others) - {folder}:
                return None
            folder.mkdir(exist_ok=True)
            self._held[folder] = (folder / _HELD).open("a")
            fcntl.flock(self._held[folder], fcntl.LOCK_SH)
            return folder not in others

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


def _alone_in(parent: Path) -> AbstractContextManager[int]:
    return locked(parent / "lock", patience_seconds=math.inf, busy="")


def _leave(held: dict[Path, TextIO], process: int) -> None:
    if process != os.getpid():
        return
    for folder, file in held.items():
        with suppress(OSError, Busy), _alone_in(folder.parent):
            file.close()
            _removed(folder)


def _removed(folder: Path) -> bool:
    """Removes a folder unless a process holds it."""
    try:
        with locked(folder / _HELD, busy=""):
            shutil.rmtree(folder)
    except Busy:
        return False
    return True
