"""Files of a job: whole or absent even after a crash of the machine, locked by one process, and checked when read."""

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from megaslm.errors import ConfigError, DataError

UNFINISHED = ".unfinished-"
"""Prefix of files that are still being written; the leading dot hides them from globs."""
_LOOK_AGAIN_SECONDS = 0.1
# The paths that this process has locked or waits for, each with its threads.
_open: dict[int, tuple[Path, int]] = {}
Model = TypeVar("Model", bound=BaseModel)


def looked_in(path: str | Path) -> str:
    """Where a relative path begins that leads to nothing, to continue a message; empty for any other path."""
    return "" if Path(path).is_absolute() or Path(path).exists() else relative_to_here()


def relative_to_here() -> str:
    """Where all relative paths begin, as `looked_in` says it."""
    return f" (relative to {Path.cwd()})"


def unfinished(path: Path) -> Path:
    """The path at which `path` is written before it is complete, in the same folder, so that it can be renamed."""
    return path.with_name(UNFINISHED + path.name)


def write_file(path: Path, content: str | bytes) -> None:
    """Write bytes, or UTF-8 text, to `path`, which then holds either its former content or all of the new one."""
    temporary = unfinished(path)
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def start_folder(path: Path) -> Path:
    """An empty folder in which to build `path`. Removes leftovers of an earlier attempt."""
    temporary = unfinished(path)
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    return temporary


def finish_folder(path: Path) -> None:
    """Rename the folder of `start_folder` to `path`, replacing anything of that name."""
    temporary = unfinished(path)
    for entry in sorted(temporary.rglob("*")):
        sync(entry)
    sync(temporary)
    if path.exists():
        shutil.rmtree(path)
    temporary.rename(path)
    sync(path.parent)


def abandon_folder(path: Path) -> None:
    """Remove the folder of `start_folder`."""
    shutil.rmtree(unfinished(path), ignore_errors=True)


def require_absent(path: Path) -> None:
    """Raises ConfigError where something is at `path`, be it a link that leads nowhere."""
    if os.path.lexists(path):
        raise ConfigError(f"{path}: exists already; choose another folder, or remove it if nothing in it is needed")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `path` at the end of the context. After an exception nothing is left.

    Raises ConfigError where no folder can be made there.
    """
    try:
        folder = start_folder(path)
    except OSError as error:
        raise cannot_be_made(str(path), error) from error
    try:
        yield folder
        finish_folder(path)
    except BaseException:
        abandon_folder(path)
        raise


def cannot_be_made(what: str, error: OSError) -> ConfigError:
    """The mistake of a user who wants a folder, named as in `what`, where none can be made."""
    return ConfigError(f"{what}: the folder cannot be made ({error.strerror}); choose another place, or allow it there")


def sync(path: Path) -> None:
    """Wait until a file's or folder's content has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Busy(DataError):
    """Another process holds the lock."""


@contextmanager
def locked(path: Path, *, shared: bool = False, patience_seconds: float = 0.0, busy: str) -> Iterator[int]:
    """Hold the lock of `path`, a file that is created if missing. Shared locks do not exclude one another.

    Yields the descriptor of the file, which may have been removed from `path` meanwhile.

    On a network file system other hosts are excluded too, if it supports locks (NFS 4, Lustre mounted with `flock`). A
    process that the holding thread forks holds the lock too; one that another thread forks does not.

    Raises:
        Busy: with the message `busy`, where another process or thread holds the lock for longer than
            `patience_seconds`; at once where this thread holds it.
        DataError: the file system has no locks.
        OSError: the file cannot be opened.
    """
    deadline = time.monotonic() + patience_seconds
    mine = path, threading.get_ident()
    if mine in list(_open.values()):
        # A finalizer, run by the garbage collector within the context: waiting would never end.
        raise Busy(busy)
    # Opened for reading too, because NFS otherwise gives no shared lock.
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
                    f"{path}: its file system gives no locks ({error.strerror}), which keep processes from disturbing "
                    "one another; use a folder on one that does, such as a local disk, or mount it with locks"
                ) from error
        yield file
    finally:
        del _open[file]
        os.close(file)


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock of `path`; False where there is no such file, or no locks.

    A file that is free is locked for an instant, shared, so that whoever locks it just then must look again.
    """
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)
    return False


def _forget_other_threads() -> None:
    """Closes, in a forked child, the locks of other threads of the parent, which the child would hold for ever."""
    for file, (_, thread) in list(_open.items()):
        if thread != threading.get_ident():
            del _open[file]
            os.close(file)


os.register_at_fork(after_in_child=_forget_other_threads)


def read_back(model: type[Model], content: bytes, place: str, remedy: str) -> Model:
    """The record in a file. Raises DataError, which ends with `remedy`, where the file holds no such record.

    `place` is the file's name in the message.
    """
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise DataError(f"{place} is not what MegaSLM writes there ({first_problem(error)}); {remedy}") from error


def first_problem(error: ValidationError) -> str:
    """The first of the problems that pydantic found in a file, on one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    return "".join(f"{part}: " for part in first["loc"]) + first["msg"]
