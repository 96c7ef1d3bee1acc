"""A file that grows by whole entries, also where the disk is full now and then."""

import os
from pathlib import Path

from megaslm.jobs.durable import sync

_MOST_KEPT_BYTES = 16 << 20


class LogFile:
    """Entries that follow one another in a file. Those that cannot be written wait in memory."""

    def __init__(self, path: Path, *, end_bytes: int = 0) -> None:
        """Goes on where the file's first `end_bytes` end; what lies behind them is taken out."""
        self.path = path
        self.lost_entries = 0
        self._end_bytes = end_bytes
        self._kept = bytearray()
        if path.exists():
            os.truncate(path, end_bytes)

    def keep(self, entry: bytes) -> None:
        """Takes an entry for the next `flush`; where too many wait for it already, the entry is lost and counted."""
        if len(self._kept) + len(entry) > _MOST_KEPT_BYTES:
            self.lost_entries += 1
        else:
            self._kept += entry

    def flush(self) -> None:
        """Writes what is kept.

        Raises:
            OSError: it could not be written; the file is as it was, and the entries are kept.
        """
        # Opened each time: a network file system may tell on closing alone that there was no room.
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            end_bytes = min(self._end_bytes, os.fstat(file).st_size)
            self._write(file, end_bytes)
        finally:
            os.close(file)
        self._end_bytes = end_bytes + len(self._kept)
        self._kept.clear()

    def sync(self) -> None:
        """Writes what is kept, and waits until all of the file has reached the disk; raises what `flush` does."""
        self.flush()
        sync(self.path)
        sync(self.path.parent)

    def _write(self, file: int, end_bytes: int) -> None:
        written = 0
        try:
            while written < len(self._kept):
                written += os.pwrite(file, memoryview(self._kept)[written:], end_bytes + written)
        except OSError:
            # Nobody is to find half an entry.
            os.ftruncate(file, end_bytes)
            raise
