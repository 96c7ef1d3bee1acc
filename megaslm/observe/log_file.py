"""Log files grow by whole entries, even if the disk is full from time to time."""

import os
from pathlib import Path

from megaslm.files import sync

_MOST_KEPT_BYTES = 16 << 20


class LogFile:
    """A file of consecutive entries. Entries that cannot be written wait in memory."""

    def __init__(self, path: Path, *, end_bytes: int = 0) -> None:
        """Continues after the file's first `end_bytes`. The rest of the file is cut off."""
        self.path = path
        self.lost_entries = 0
        self._end_bytes = end_bytes
        self._kept = bytearray()
        if path.exists():
            os.truncate(path, end_bytes)

    def keep(self, entry: bytes) -> None:
        """Keeps an entry for the next `flush`. If too many are waiting already, the entry is lost and counted."""
        if len(self._kept) + len(entry) > _MOST_KEPT_BYTES:
            self.lost_entries += 1
        else:
            self._kept += entry

    def flush(self) -> None:
        """Writes the kept entries.

        Raises:
            OSError: they could not be written; the file is unchanged, and the entries are kept.
        """
        # Opened and closed each time: a network file system may report a full disk only on closing.
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            end_bytes = min(self._end_bytes, os.fstat(file).st_size)
            self._write(file, end_bytes)
        finally:
            os.close(file)
        self._end_bytes = end_bytes + len(self._kept)
        self._kept.clear()

    def sync(self) -> None:
        """Writes the kept entries and waits until the whole file is on disk. Raises the errors of `flush`."""
        self.flush()
        sync(self.path)
        sync(self.path.parent)

    def _write(self, file: int, end_bytes: int) -> None:
        written = 0
        try:
            while written < len(self._kept):
                written += os.pwrite(file, memoryview(self._kept)[written:], end_bytes + written)
        except OSError:
            # Readers must not find half an entry.
            os.ftruncate(file, end_bytes)
            raise
