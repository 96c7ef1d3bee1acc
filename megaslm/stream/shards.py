"""The shards of a run on one host: makes them ready, maps them and evicts them.

A shard is ready while its rows are in a file and the host's folder has a note of it, which says that its bytes were
compared with their checksum. The process that makes it ready holds a lock. A map of a file holds the file's lock.
"""

import fcntl
import math
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Container, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from time import monotonic, sleep

import numpy as np
from numpy.typing import NDArray

from megaslm.config.schema import FetchSection
from megaslm.dataset.rows import rows_in
from megaslm.errors import DataError
from megaslm.files import UNFINISHED, Busy, locked
from megaslm.storage.retries import RemoteSettings
from megaslm.stream.host_folder import HostFolder
from megaslm.stream.shard_files import ShardFiles

# Each map keeps a file open, and a process may have 1,024 open files by default.
_MOST_MAPS = 128
# With fewer, several reading processes would evict shards as soon as they arrive.
_LEAST_SHARDS = 4
_LOOK_AGAIN_SECONDS = 0.007
_CHECKS = "checks"
_GIB = 1 << 30


@dataclass(frozen=True)
class ShardChecks:
    """The cost of comparing shards with their checksums on this host so far."""

    files: int
    bytes: int
    seconds: float
    """Time of the comparing threads, added up."""

    @classmethod
    def on(cls, host: HostFolder) -> "ShardChecks":
        """The comparisons by all processes of the host."""
        path = host.path / _CHECKS
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return cls(len(lines), sum(int(size) for size, _ in lines), sum(float(taken) for _, taken in lines))


def claim_caches(shards: Sequence[ShardFiles], host: HostFolder, fetch: FetchSection) -> None:
    """Keeps other runs out of the folders that shards are fetched into, and removes what killed runs left there.

    Raises DataError where a cache is too small or in use.
    """
    remote = [files for files in shards if files.remote is not None]
    largest_bytes = max((files.most_bytes for files in remote), default=0)
    limit_bytes = _limit_bytes(fetch)
    if limit_bytes is not None and limit_bytes < _LEAST_SHARDS * largest_bytes:
        raise DataError(
            f"a cache of {limit_bytes:,} bytes is too small for shards of up to {largest_bytes:,} bytes; it must "
            f"hold {_LEAST_SHARDS} of them, and better as many as a run reads at a time"
        )
    for folder in dict.fromkeys(files.folder for files in remote):
        if host.claim_cache(folder):
            for path in folder.rglob(f"{UNFINISHED}*"):
                path.unlink()


class TrainingShards:
    """One process's view of the shards, and a thread that makes them ready, in the order of the requests.

    At the end of its context it drops requests that have not started. A DataError that ends the context is told to all
    processes of the host, which wait in vain for shards otherwise.
    """

    def __init__(self, shards: Sequence[ShardFiles], host: HostFolder, fetch: FetchSection) -> None:
        self._files, self._host, self._fetch = shards, host, fetch
        self._ends = list(accumulate(files.shard.samples for files in shards))
        self.domains = np.array([files.domain for files in shards])
        """The number of each shard's domain in the run."""
        self._notes = host.path / "ready"
        self._notes.mkdir(exist_ok=True)
        self._limit_bytes = _limit_bytes(fetch)
        self.are_evicted = self._limit_bytes is not None
        """Whether the cache has a limit. A shard that this process has mapped is not evicted."""
        self._maps: OrderedDict[int, NDArray[np.void]] = OrderedDict()
        self._requests: dict[int, Future[None]] = {}
        self._supply = ThreadPoolExecutor(1, thread_name_prefix="shard supply")

    def __enter__(self) -> "TrainingShards":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        """Waits for the current request, so that nothing half done is left for other processes. After an exception the
        run ends anyway, so it does not wait."""
        if isinstance(error, DataError):
            self._host.fail(str(error))
        self._supply.shutdown(wait=kind is None, cancel_futures=True)

    def shard_of(self, number: int) -> int:
        """The shard of a row."""
        return bisect_right(self._ends, number)

    def is_ready(self, shard: int) -> bool:
        """Whether rows of the shard may be read. If the cache has a limit, the shard may be evicted at any moment."""
        if shard in self._maps and self._limit_bytes is None:
            return True
        return self._note(shard).exists() and self._files[shard].raw.exists()

    def request(self, shard: int) -> None:
        """Queues a shard unless it is ready. Raises the error of its earlier request, if that one failed."""
        if self.is_ready(shard):
            return
        earlier = self._requests.get(shard)
        if earlier is None or earlier.done():
            if earlier is not None:
                earlier.result()
            self._requests[shard] = self._supply.submit(self.make_ready, shard)

    def row(self, number: int, shard: int) -> np.void:
        """One row, its columns by name as stored, once its shard is ready.

        Raises DataError where the shard is corrupt, cannot be fetched, or did not come in time.
        """
        started = monotonic()
        while shard not in self._maps and not (self.is_ready(shard) and self._map(shard)):
            self.request(shard)
            self._refuse_hopeless(shard, monotonic() - started)
            sleep(_LOOK_AGAIN_SECONDS)
        self._maps.move_to_end(shard)
        row: np.void = self._maps[shard][number - self._ends[shard]]
        return row

    def keep_mapped(self, shards: Container[int]) -> None:
        """Unmaps all other shards, so that they may be evicted."""
        for shard in [shard for shard in self._maps if shard not in shards]:
            self._forget(shard)

    def make_ready(self, shard: int) -> None:
        """Fetches, checks and unpacks a shard, unless it is ready, the cache is full, or another process is at it.

        Raises DataError where it is corrupt, or cannot be fetched or written.
        """
        files, claim, tries = self._files[shard], self._claim(shard), self._fetch.retries + 1
        settings = RemoteSettings(attempts=tries, timeout_seconds=self._fetch.timeout_seconds / tries)
        try:
            with suppress(Busy), locked(claim, busy=""):
                if not self.is_ready(shard) and self._has_room_for(shard):
                    files.bring(settings, self._count)
                    self._note(shard).touch()
                    claim.write_text("")
        except OSError as error:
            raise DataError(
                f"{files.name}: {files.raw} cannot be written or read: {error}; make room on that disk, or fix its "
                "permissions"
            ) from error

    def _map(self, shard: int) -> bool:
        """Maps a shard's rows, which stay in their file until they are read. False if the shard was evicted."""
        # Maps of evicted shards keep their files on the disk.
        for other in [other for other in self._maps if not self.is_ready(other)]:
            self._forget(other)
        if len(self._maps) == _MOST_MAPS:
            self._forget(next(iter(self._maps)))
        files = self._files[shard]
        with suppress(FileNotFoundError), files.raw.open("rb") as file:
            if self._limit_bytes is not None:
                # The map duplicates the descriptor, and so keeps the lock.
                fcntl.flock(file, fcntl.LOCK_SH)
            content = np.memmap(file, dtype=np.uint8, mode="r").view(np.ndarray)
            self._maps[shard] = rows_in(files.raw, content, files.shard)
        return shard in self._maps

    def _forget(self, shard: int) -> None:
        del self._maps[shard]
        os.utime(self._note(shard))

    def _refuse_hopeless(self, shard: int, waited_seconds: float) -> None:
        failure = self._host.failure()
        if failure is not None:
            raise DataError(failure)
        files = self._files[shard]
        if files.remote is not None and waited_seconds > self._fetch.timeout_seconds:
            claim = self._claim(shard)
            preparer = claim.read_text() if claim.exists() else ""
            at_work = f"process {preparer} is still fetching it" if preparer else "the cache has no room for it"
            raise DataError(
                f"{files.name}: not there after {waited_seconds:.0f} seconds: {at_work}; check the network and the "
                "store, or raise the time limit or the cache's limit"
            )

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
        used_bytes, evictable = 0, {}
        for shard, files in enumerate(self._files):
            if files.remote is None or shard == without:
                continue
            if _size(self._claim(shard)):
                used_bytes += files.most_bytes
            elif on_disk_bytes := files.bytes_on_disk():
                used_bytes += on_disk_bytes
                evictable[shard] = on_disk_bytes
        if used_bytes > most_bytes:
            for _, _, shard in sorted((*self._last_read(shard), shard) for shard in evictable):
                if used_bytes > most_bytes:
                    self._files[shard].remove()
                    used_bytes -= evictable[shard]
        return used_bytes <= most_bytes

    def _last_read(self, shard: int) -> tuple[bool, float]:
        """Whether a process has the shard mapped, and when one read it last: 0 if only an earlier run fetched it."""
        note, is_mapped = self._note(shard), False
        with suppress(FileNotFoundError), self._files[shard].raw.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                is_mapped = True
        return is_mapped, note.stat().st_mtime if note.exists() else 0.0

    def _count(self, size: int, seconds: float) -> None:
        with (self._host.path / _CHECKS).open("a") as checks:
            checks.write(f"{size} {seconds}\n")

    def _note(self, shard: int) -> Path:
        """Exists once the shard was compared. Its modification time is the time of the last read."""
        return self._notes / str(shard)

    def _claim(self, shard: int) -> Path:
        """Locked by the process that makes the shard ready. Not empty while the cache reserves room for the shard."""
        return self._notes / f"{shard}.claim"


def _limit_bytes(fetch: FetchSection) -> int | None:
    return None if fetch.cache_limit_gib is None else int(fetch.cache_limit_gib * _GIB)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
