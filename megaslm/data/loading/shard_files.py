"""The files of one shard of a training stream: fetched, compared with their checksums, unpacked."""

import errno
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from megaslm.config.credentials import without_credentials
from megaslm.data.dataset.damage import Damaged
from megaslm.data.dataset.shard_index import CHECKSUM, INDEX, Shard, ShardFile
from megaslm.data.loading.shard_board import ShardChecks
from megaslm.data.stream import Stream, get_hash
from megaslm.errors import DataError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_CHECK_THE_WAY = "check the address, the credentials and the network"


@dataclass(frozen=True)
class ShardFiles:
    """One shard, in a local folder and maybe in an object store."""

    stream: Stream
    shard: Shard
    first_row: int
    """The number of its first row in its stream."""

    @property
    def raw(self) -> Path:
        """The file that rows are read from."""
        return self._path(self.shard.raw_data)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that it may have on the local disk."""
        return tuple({self.raw, self._stored})

    @property
    def is_remote(self) -> bool:
        """Whether it is fetched, and can be fetched again."""
        return self.stream.remote is not None

    @property
    def name(self) -> str:
        """Where it comes from, and which rows it holds."""
        place = f"{self.stream.remote}/{self.shard.stored.basename}" if self.is_remote else str(self._stored)
        return f"{place} ({self._rows})"

    @property
    def most_bytes(self) -> int:
        """What it takes on disk while it is unpacked."""
        return sum(file.bytes for file in (self.shard.raw_data, self.shard.zip_data) if file is not None)

    def bytes_on_disk(self) -> int:
        """What it takes on disk now."""
        return sum(path.stat().st_size for path in self.paths if path.is_file())

    def make_ready(self, count: Callable[[ShardChecks], None]) -> None:
        """Brings `raw` onto the local disk, every byte compared with a checksum of the index; `count` hears of each.

        Raises:
            DataError: a file is missing or damaged, or cannot be fetched or written; the message names it.
        """
        try:
            if self._is_sound(self.shard.raw_data, count):
                return
            if self.shard.zip_data is None:
                self._fetch(self.shard.raw_data, count)
                return
            if not self._is_sound(self.shard.zip_data, count):
                self._fetch(self.shard.zip_data, count)
            self._unpack(self.shard.zip_data)
        except OSError as error:
            raise DataError(
                f"{self.raw}: cannot be written or read: {error}; make room on that disk, or mend its permissions"
            ) from error

    def _is_sound(self, file: ShardFile, count: Callable[[ShardChecks], None]) -> bool:
        """Whether `file` is there and right; removes a wrong one that can be had again, and refuses any other."""
        path = self._path(file)
        if not path.is_file():
            return False
        finding = _compare(path, file, count)
        if finding is None:
            return True
        if not self.is_remote and (path == self._stored or not self._stored.is_file()):
            raise Damaged(path, f"{finding} ({self._rows})")
        path.unlink()
        return False

    def _fetch(self, file: ShardFile, count: Callable[[ShardChecks], None]) -> None:
        path = self._path(file)
        if not self.is_remote:
            raise Damaged(path, f"is missing, though {INDEX} lists it ({self._rows})")
        finding = self._download(file, count)
        if finding is not None:
            finding = self._download(file, count)
        if finding is not None:
            raise DataError(
                f"{self.name} {finding}, fetched twice; the object is not what was uploaded, or it is changed on its "
                f"way: upload the dataset again"
            )

    def _download(self, file: ShardFile, count: Callable[[ShardChecks], None]) -> str | None:
        """Fetches a file; gives what is wrong with it, and has removed it then."""
        path = self._path(file)
        try:
            self.stream._download_file(file.basename)
        # What a store's client raises has no common root; all of it is reported as one kind of error.
        except Exception as error:
            cause = f"{type(error).__name__}: {without_credentials(str(error))}"
            is_full = isinstance(error, OSError) and error.errno in _NO_ROOM
            remedy = f"make room on the disk of {path.parent}" if is_full else _CHECK_THE_WAY
            raise DataError(
                f"{self.name}: could not be fetched in {self.stream.download_retry} tries, last: {cause}; {remedy}"
            ) from error
        finding = _compare(path, file, count)
        if finding is not None:
            path.unlink()
        return finding

    def _unpack(self, packed: ShardFile) -> None:
        self.raw.parent.mkdir(parents=True, exist_ok=True)
        self.stream._decompress_shard_part(packed, str(self._stored), str(self.raw), self.shard.compression)

    @property
    def _stored(self) -> Path:
        return self._path(self.shard.stored)

    @property
    def _rows(self) -> str:
        return f"rows {self.first_row} to {self.first_row + self.shard.samples - 1}"

    def _path(self, file: ShardFile) -> Path:
        return Path(self.stream.local) / file.basename


def _compare(path: Path, file: ShardFile, count: Callable[[ShardChecks], None]) -> str | None:
    """What is wrong with a file, in words; None where its content is what the index says."""
    started = perf_counter()
    found_bytes = path.stat().st_size
    if found_bytes != file.bytes:
        return f"has {found_bytes} bytes, {INDEX} says {file.bytes}"
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = get_hash(CHECKSUM, content)
    count(ShardChecks(files=1, bytes=file.bytes, seconds=perf_counter() - started))
    expected = file.hashes.get(CHECKSUM)
    return None if found == expected else f"has the {CHECKSUM} {found}, {INDEX} says {expected}"
