"""What one of a session's processes has made or computed, the others need not make or compute again."""

import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import TypeVar

import pytest
from filelock import FileLock

K = TypeVar("K")
V = TypeVar("V")


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make` has filled, for all workers of a session; no test writes into it."""
    session = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        # The folder in which each worker has its own.
        session = session.parent
    noted = session / f"{name}.made"
    with FileLock(session / f"{name}.lock"):
        if not noted.exists():
            folder = factory.mktemp(name)
            make(folder)
            noted.write_text(str(folder), encoding="utf-8")
        return Path(noted.read_text(encoding="utf-8"))


class SharedResults(dict[K, V]):
    """Results by what they were computed from, shared by the process that makes it and all that it forks from then on.

    Keys and values are pickled.
    """

    def __init__(self) -> None:
        super().__init__()
        # Without a buffer, and appended: each entry is written in one call, whichever process writes it.
        self._file = TemporaryFile("ab+", buffering=0)  # noqa: SIM115  # Open as long as one of them lives.

    def __contains__(self, key: object) -> bool:
        if not super().__contains__(key):
            self._read()
        return super().__contains__(key)

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        self._file.write(pickle.dumps((key, value)))

    def _read(self) -> None:
        # At a place of its own: processes that are forked share that of the file.
        stored = BytesIO(os.pread(self._file.fileno(), os.fstat(self._file.fileno()).st_size, 0))
        # The last entry may be one that is being written.
        with suppress(EOFError, pickle.UnpicklingError):
            while True:
                key, value = pickle.load(stored)
                super().__setitem__(key, value)
