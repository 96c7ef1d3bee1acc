"""The shards of a run on one host: makes them ready, maps them and evicts them.

A shard is ready once the host's folder has a note of it, written after its bytes were compared with their checksum. The
process that makes it ready holds a lock. A reader holds the lock of a shard's file while it has the file mapped.
"""

import fcntl
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Container, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megaslm.dataset.index import ShardIndex
from megaslm.dataset.rows import rows_in
from megaslm.errors import DataError
from megaslm.files import UNFINISHED, Busy, locked
from megaslm.storage.remote import DEFAULTS
from megaslm.storage.retries import RemoteSettings
from megaslm.stream.host_folder import HostFolder
from megaslm.stream.mixture import MixtureStream
from megaslm.stream.shard_files import ShardFiles, files_of

# Each map keeps a file open, and a process may have 1,024 open files by default.
_MOST_MAPS = 128
# With fewer, several reading processes would evict shards as soon as they arrive.
_LEAST_SHARDS = 4
_LOOK_AGAIN_SECONDS = 0.007
_CHECKS = "checks"


@dataclass(frozen=True)
class FetchSettings:
    """How shards of remote datasets are fetched: limits of one run on one host."""

    cache_limit_bytes: int | None
    """Maximum size of the local cache. The shards that were read longest ago make room for others. None: no limit."""
    retries: int
    """How often a failed request is repeated, after a pause that doubles each time."""
    timeout_seconds: float
    """How long a process waits for a shard before it gives up. Each try may take its share of that time."""

    @property
    def remote(self) -> RemoteSettings:
        """The same settings for one request."""
        tries = self.retries + 1
        return RemoteSettings(attempts=tries, timeout_seconds=self.timeout_seconds / tries)


class Row(NamedTuple):
    """One row of a run."""

    number: int
    """Counted over the streams, one after the other."""
    domain: int
    """The number of its domain in the run."""
    columns: np.void
    """Its columns by name, as stored."""


@dataclass(frozen=True)
class ShardChecks:
    """The cost of comparing shards with their checksums on this host so far."""

    files: int
    """Files compared."""
    bytes: int
    """Their total size."""
    seconds: float
    """Time of the comparing threads, added up."""


class TrainingShards:
    """One process's view of the shards."""

    def __init__(
        self,
        streams: Sequence[MixtureStream],
        indices: Sequence[ShardIndex],
        host: HostFolder,
        fetch: FetchSettings | None,
    ) -> None:
        """Takes each stream with its index.

        Raises DataError where a folder is read twice, or the cache is too small or in use.
        """
        _refuse_repeated(streams)
        self._files = [files for pair in zip(streams, indices, strict=True) for files in files_of(*pair)]
        self._ends = np.cumsum([files.shard.samples for files in self._files])
        self._host, self._fetch = host, fetch
        self._notes = host.path / "ready"
        self._notes.mkdir(exist_ok=True)
        self._limit_bytes = None if fetch is None else fetch.cache_limit_bytes
        self._maps: OrderedDict[int, tuple[NDArray[np.void], BinaryIO]] = OrderedDict()
        self._stay_ready: set[int] = set()
        if any(files.remote for files in self._files):
            if fetch is None:
                raise ValueError("remote streams cannot be read without FetchSettings")
            _require_room(self._files, fetch)
        for stream in streams:
            if stream.remote is not None and host.claim_cache(stream.local):
                # Remains of a killed run's fetches.
                for path in stream.local.rglob(f"{UNFINISHED}*"):
                    path.unlink()

    def shards_of(self, numbers: NDArray[np.integer]) -> list[int]:
        """The shard of each row."""
        found: list[int] = np.searchsorted(self._ends, numbers, side="right").tolist()
        return found

    def checks(self) -> ShardChecks:
        """The comparisons so far, by all processes of the host."""
        path = self._host.path / _CHECKS
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return ShardChecks(len(lines), sum(int(size) for size, _ in lines), sum(float(taken) for _, taken in lines))

    def is_ready(self, shard: int) -> bool:
        """Whether rows of the shard may be read. If the cache has a limit, the shard may be evicted at any moment."""
        if shard not in self._stay_ready:
            if not self._note(shard).exists():
                return False
            if self._limit_bytes is None:
                self._stay_ready.add(shard)
        return True

    def row(self, number: int, shard: int, supply: "Supply") -> Row:
        """One row, once its shard is ready.

        Raises DataError where the shard is corrupt, cannot be fetched, or did not come in time.
        """
        if shard not in self._maps:
            self._map_once_ready(shard, supply)
        self._maps.move_to_end(shard)
        rows, _ = self._maps[shard]
        return Row(number, self._files[shard].domain, rows[number - self._ends[shard]])

    def make_ready(self, shard: int) -> None:
        """Fetches, checks and unpacks a shard, unless it is ready, the cache is full, or another process is at it.

        Raises:
            DataError: it is corrupt, or cannot be fetched or written. The other processes of the host are told.
        """
        files, claim = self._files[shard], self._claim(shard)
        try:
            with suppress(Busy), locked(claim, busy=""):
                if not (self.is_ready(shard) and files.raw.is_file()) and self._has_room_for(shard):
                    files.bring(DEFAULTS if self._fetch is None else self._fetch.remote, self._count)
                    self._note(shard).touch()
                    claim.write_text("")
        except OSError as error:
            raise self._failed(
                f"{files.name}: {files.raw} cannot be written or read: {error}; make room on that disk, or fix its "
                "permissions"
            ) from error
        except DataError as error:
            self._host.fail(str(error))
            raise

    def keep_mapped(self, shards: Container[int]) -> None:
        """Unmaps all other shards if the cache has a limit."""
        if self._limit_bytes is not None:
            for shard in [shard for shard in self._maps if shard not in shards]:
                self._forget(shard)

    def _map_once_ready(self, shard: int, supply: "Supply") -> None:
        started = monotonic()
        while not (self.is_ready(shard) and self._map(shard)):
            supply.ask(shard)
            self._refuse_hopeless(shard, monotonic() - started)
            sleep(_LOOK_AGAIN_SECONDS)

    def _map(self, shard: int) -> bool:
        """Maps a shard's rows, which stay in their file until they are read. False if the shard was evicted."""
        files = self._files[shard]
        # Maps of evicted shards keep their files on the disk.
        for other in [other for other in self._maps if not self.is_ready(other)]:
            self._forget(other)
        if len(self._maps) == _MOST_MAPS:
            self._forget(next(iter(self._maps)))
        try:
            file = files.raw.open("rb")
        except FileNotFoundError:
            with suppress(FileNotFoundError):
                self._stay_ready.discard(shard)
                self._note(shard).unlink()
            return False
        if self._limit_bytes is not None:
            fcntl.flock(file, fcntl.LOCK_SH)
        content = np.memmap(file, dtype=np.uint8, mode="r").view(np.ndarray)
        self._maps[shard] = rows_in(files.raw, content, files.shard), file
        return True

    def _forget(self, shard: int) -> None:
        _, file = self._maps.pop(shard)
        file.close()
        with suppress(FileNotFoundError):
            os.utime(self._note(shard))

    def _refuse_hopeless(self, shard: int, waited_seconds: float) -> None:
        failure = self._host.failure()
        if failure is not None:
            raise DataError(failure)
        files = self._files[shard]
        if files.remote is not None and self._fetch is not None and waited_seconds > self._fetch.timeout_seconds:
            claim = self._claim(shard)
            preparer = claim.read_text() if claim.exists() else ""
            at_work = f"process {preparer} is still fetching it" if preparer else "the cache has no room for it"
            raise self._failed(
                f"{files.name}: not there after {waited_seconds:.0f} seconds: {at_work}; check the network and the "
                "store, or raise the time limit or the cache's limit"
            )

    def _failed(self, message: str) -> DataError:
        self._host.fail(message)
        return DataError(message)

    def _has_room_for(self, shard: int) -> bool:
        """Reserves room in the cache for a shard, by eviction if needed. False if there is none."""
        files, limit_bytes = self._files[shard], self._limit_bytes
        if files.remote is None:
            return True
        with locked(self._notes / "room", patience_seconds=math.inf, busy=""):
            if limit_bytes is not None and not self._make_room(limit_bytes - files.most_bytes, without=shard):
                return False
            self._claim(shard).write_text(str(os.getpid()))
        return True

    def _make_room(self, most_bytes: int, *, without: int) -> bool:
        """Evicts shards until the others take at most `most_bytes`. False if that is impossible."""
        remote = {shard: files for shard, files in enumerate(self._files) if files.remote and shard != without}
        coming = {shard for shard in remote if _size(self._claim(shard))}
        used_bytes = {
            shard: files.most_bytes if shard in coming else files.bytes_on_disk() for shard, files in remote.items()
        }
        there = [shard for shard in remote if shard not in coming and used_bytes[shard]]
        last_read = {shard: _last_read(self._note(shard)) for shard in there}
        excess_bytes = sum(used_bytes.values()) - most_bytes
        for only_unmapped in (True, False):
            for shard in sorted(there, key=last_read.__getitem__):
                if excess_bytes > 0 and self._evict(shard, only_unmapped=only_unmapped):
                    excess_bytes -= used_bytes.pop(shard, 0)
        return excess_bytes <= 0

    def _evict(self, shard: int, *, only_unmapped: bool) -> bool:
        files = self._files[shard]
        with suppress(FileNotFoundError), files.raw.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if only_unmapped:
                    return False
        self._note(shard).unlink(missing_ok=True)
        files.remove()
        return True

    def _count(self, size: int, seconds: float) -> None:
        with (self._host.path / _CHECKS).open("a") as checks:
            checks.write(f"{size} {seconds}\n")

    def _note(self, shard: int) -> Path:
        """The note exists while the shard is ready. Its modification time is the time of the last read."""
        return self._notes / str(shard)

    def _claim(self, shard: int) -> Path:
        """Locked by the process that makes the shard ready. Not empty while the cache reserves room for the shard."""
        return self._notes / f"{shard}.claim"


class Supply:
    """A thread that makes shards ready, in the order in which they are requested.

    At the end of its context it drops requests that have not started. Readers wait for shards with a time limit of
    their own, which a download may exceed.
    """

    def __init__(self, make_ready: Callable[[int], None]) -> None:
        """`make_ready` is called with one shard number at a time."""
        self._make_ready = make_ready
        self._asked: dict[int, Future[None]] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="shard supply")

    def __enter__(self) -> "Supply":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for the current request, so that nothing half done is left for other processes. After an exception the
        run ends anyway, so it does not wait."""
        self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def ask(self, shard: int) -> None:
        """Queues a shard. Raises the error of its earlier request, if that one failed."""
        before = self._asked.get(shard)
        if before is None or before.done():
            if before is not None:
                before.result()
            self._asked[shard] = self._pool.submit(self._make_ready, shard)


def _refuse_repeated(streams: Sequence[MixtureStream]) -> None:
    folders = [stream.local for stream in streams]
    repeated = sorted({str(folder) for folder in folders if folders.count(folder) > 1})
    if repeated:
        raise DataError(f"{', '.join(repeated)} is read twice in one run; name it once, with the sum of the weights")


def _require_room(all_files: Sequence[ShardFiles], fetch: FetchSettings) -> None:
    largest = max(files.most_bytes for files in all_files if files.remote)
    if fetch.cache_limit_bytes is not None and fetch.cache_limit_bytes < _LEAST_SHARDS * largest:
        raise DataError(
            f"a cache of {fetch.cache_limit_bytes:,} bytes is too small for shards of up to {largest:,} bytes; it must "
            f"hold {_LEAST_SHARDS} of them, and better as many as a run reads at a time"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _last_read(note: Path) -> float:
    """The time of the last read. 0 if only an earlier run has fetched the shard."""
    return note.stat().st_mtime if note.exists() else 0.0
