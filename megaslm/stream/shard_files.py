"""The files of one shard of a run: fetched, compared with their checksums, unpacked."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np

from megaslm.dataset.index import INDEX, Shard, ShardFile, ShardIndex
from megaslm.dataset.remote import fetch_shard
from megaslm.dataset.rows import require_checksum, unpacked
from megaslm.errors import CorruptData, DataError
from megaslm.files import unfinished
from megaslm.storage.retries import RemoteSettings
from megaslm.stream.mixture import MixtureStream

OnCheck = Callable[[int, float], None]
"""Called with the size in bytes of a compared file, and the seconds that this took."""


class ShardFiles(NamedTuple):
    """One shard, in a local folder and perhaps in an object store."""

    folder: Path
    remote: str | None
    """The URL of that folder, to fetch it from; None if the shard is only local."""
    shard: Shard
    domain: int
    """The number of its domain in the run."""
    first_row: int
    """The number of its first row in its stream."""

    @property
    def raw(self) -> Path:
        """The file that rows are read from."""
        return self.folder / self.shard.raw_data.basename

    @property
    def stored(self) -> Path:
        """The file that is fetched, or the dataset's own file."""
        return self.folder / self.shard.stored.basename

    @property
    def name(self) -> str:
        """The shard's place and its rows, for messages."""
        return f"{self._url if self.remote else self.stored} ({self._rows})"

    @property
    def most_bytes(self) -> int:
        """Its size on disk while it is unpacked."""
        return sum(file.bytes for file in (self.shard.raw_data, self.shard.zip_data) if file is not None)

    def bytes_on_disk(self) -> int:
        """Its current size on disk."""
        total = 0
        for path in {self.raw, self.stored}:
            with suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    def remove(self) -> None:
        """Deletes its local files."""
        for path in {self.raw, self.stored}:
            path.unlink(missing_ok=True)

    def bring(self, settings: RemoteSettings, on_check: OnCheck) -> None:
        """Puts `raw` on the local disk, every byte compared with a checksum of the index.

        Raises:
            DataError: a file is missing or corrupt, or cannot be fetched; the message names it.
            OSError: a file cannot be read or written.
        """
        if self._is_sound(self.shard.raw_data, on_check):
            return
        packed = self.shard.zip_data
        if packed is None or not self._is_sound(packed, on_check):
            self._fetch(settings)
            self._is_sound(self.shard.stored, on_check)
        if packed is not None:
            unpacked(self.stored, self.stored.read_bytes(), self.shard).tofile(unfinished(self.raw))
            unfinished(self.raw).replace(self.raw)

    def _fetch(self, settings: RemoteSettings) -> None:
        if self.remote is None:
            raise CorruptData(self.stored, f"is missing, though {INDEX} lists it ({self._rows})")
        try:
            fetch_shard(self._url, self.stored, self.shard, settings)
        except DataError as error:
            raise DataError(f"{error} ({self._rows})") from error

    def _is_sound(self, file: ShardFile, on_check: OnCheck) -> bool:
        """Whether `file` exists and is right. Removes a corrupt file if it can be fetched again, else raises."""
        path = self.folder / file.basename
        if not path.is_file():
            return False
        try:
            _require_right(path, file, on_check)
        except CorruptData as corruption:
            if self.remote is None and (path == self.stored or not self.stored.is_file()):
                raise CorruptData(path, f"{corruption.finding} ({self._rows})") from corruption
            path.unlink()
            return False
        return True

    @property
    def _url(self) -> str:
        return f"{self.remote}/{self.shard.stored.basename}"

    @property
    def _rows(self) -> str:
        return f"rows {self.first_row} to {self.first_row + self.shard.samples - 1}"


def files_of(stream: MixtureStream, index: ShardIndex) -> Iterator[ShardFiles]:
    """The shards of a stream, in the order of their rows."""
    first_row = 0
    for shard in index.shards:
        yield ShardFiles(stream.local, stream.remote, shard, stream.domain, first_row)
        first_row += shard.samples


def _require_right(path: Path, file: ShardFile, on_check: OnCheck) -> None:
    """Raise CorruptData unless a file has the size and the checksum that the index states."""
    started = perf_counter()
    found_bytes = path.stat().st_size
    if found_bytes != file.bytes:
        raise CorruptData(path, f"has {found_bytes} bytes, {INDEX} says {file.bytes}")
    try:
        require_checksum(path, np.memmap(path, dtype=np.uint8, mode="r").data, file)
    finally:
        on_check(file.bytes, perf_counter() - started)
