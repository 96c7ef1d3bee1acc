"""The shards of a run on this host: which are ready to be read, who makes others ready, and which leave for them.

All processes of the run on the host share one cache. Its numbers lie in shared memory, most of them in objects of
streaming's, and change under one lock. A shard is ready once its bytes have been compared with their checksums.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import sleep, time_ns

import numpy as np
from filelock import FileLock

from megaslm.data.loading.fetch import FetchSettings
from megaslm.data.loading.shard_board import ShardBoard, ShardChecks
from megaslm.data.loading.shard_files import ShardFiles
from megaslm.data.stream import TICK, ShardState, SharedArray, SharedScalar
from megaslm.errors import DataError

# With fewer, shards would leave as soon as they come where several processes read.
_LEAST_SHARDS = 4


@dataclass(frozen=True)
class SharedState:
    """What the processes of a host share."""

    states: SharedArray
    """(shards,) uint8, each a `ShardState`."""
    access_times: SharedArray
    """(shards,) uint64: when each was read last, in nanoseconds."""
    usage_bytes: SharedScalar
    """What fetched shards take on the disk, with room for those that are on their way."""
    board: ShardBoard
    lock_file: str


class ShardCache:
    """One process's view of the shards."""

    def __init__(self, files: Sequence[ShardFiles], shared: SharedState, fetch: FetchSettings | None) -> None:
        self._files = files
        self._shared = shared
        self._fetched = np.array([shard.is_remote for shard in files])
        self._limit_bytes = None if fetch is None else fetch.cache_limit_bytes
        self._wait_seconds = None if fetch is None else fetch.timeout_seconds
        self._stay_ready: set[int] = set()

    def take_stock(self) -> None:
        """Counts what earlier runs left in the cache, and removes what they did not finish; for one process alone."""
        kept = {path for shard in self._files for path in shard.paths}
        for folder in {shard.raw.parent for shard in self._files if shard.is_remote}:
            for path in folder.glob("*.mds.*"):
                if path not in kept:
                    path.unlink()
        self._shared.usage_bytes.set(sum(shard.bytes_on_disk() for shard in self._files if shard.is_remote))

    def checks(self) -> ShardChecks:
        """What comparing shards with their checksums has cost on this host so far."""
        return self._shared.board.checks()

    def is_ready(self, shard: int) -> bool:
        """Whether rows of the shard may be read; where the cache has a limit, it may leave at any moment."""
        if shard in self._stay_ready:
            return True
        ready = self._shared.board.is_checked(shard) and bool(self._shared.states[shard] == ShardState.LOCAL)
        if ready and self._limit_bytes is None:
            self._stay_ready.add(shard)
        return ready

    def touch(self, shard: int) -> None:
        """Notes that the shard is in use."""
        if self._limit_bytes is not None:
            self._shared.access_times[shard] = time_ns()

    def make_ready(self, shard: int) -> None:
        """Fetches, checks and unpacks a shard, unless it is ready or another process is at it.

        Raises:
            DataError: it is damaged, or cannot be fetched or written; `refuse_hopeless` tells the other processes.
        """
        if not self._claim(shard):
            return
        files = self._files[shard]
        try:
            files.make_ready(self._count)
        except Exception as error:
            self._fail(str(error))
            raise
        with self._lock():
            if files.is_remote:
                self._add_usage(files.bytes_on_disk() - files.most_bytes)
            self._shared.access_times[shard] = time_ns()
            self._shared.board.finish(shard)
            self._shared.states[shard] = ShardState.LOCAL

    def refuse_hopeless(self, shard: int, waited_seconds: float) -> None:
        """Raises DataError where a process that has waited so long for a shard waits in vain."""
        hopeless = self._why_hopeless(shard, waited_seconds)
        # Who ends because of a failure tells of it first: looked at last, it explains why somebody is gone.
        failure = self._shared.board.failure()
        if failure is not None:
            raise DataError(failure)
        if hopeless is not None:
            self._fail(hopeless)
            raise DataError(hopeless)

    def _why_hopeless(self, shard: int, waited_seconds: float) -> str | None:
        files, preparer = self._files[shard], self._shared.board.preparer(shard)
        if preparer is not None and not _lives(preparer) and self._shared.board.preparer(shard) == preparer:
            return (
                f"{files.name}: process {preparer} of this host died while it made the shard ready; find out why (out "
                f"of memory?) and start the run again"
            )
        if files.is_remote and self._wait_seconds is not None and waited_seconds > self._wait_seconds:
            at_work = "the cache has no room for it" if preparer is None else f"process {preparer} is still fetching it"
            return (
                f"{files.name}: not there after {waited_seconds:.0f} seconds: {at_work}; check the network and the "
                f"store, or raise the time limit or the cache's limit"
            )
        return None

    def _claim(self, shard: int) -> bool:
        """Whether this process is to make the shard ready; waits for room in the cache."""
        files, shared = self._files[shard], self._shared
        while True:
            with self._lock():
                state = shared.states[shard]
                if state == ShardState.PREPARING or (self.is_ready(shard) and files.raw.is_file()):
                    return False
                counted_bytes = files.bytes_on_disk() if state == ShardState.LOCAL else 0
                if not files.is_remote or self._reserve(files.most_bytes - counted_bytes, shard):
                    shared.board.claim(shard)
                    shared.states[shard] = ShardState.PREPARING
                    return True
            sleep(TICK)

    def _reserve(self, extra_bytes: int, shard: int) -> bool:
        """Counts `extra_bytes` for a shard, if as much can leave the cache as it takes."""
        limit_bytes = self._limit_bytes
        while limit_bytes is not None and self._shared.usage_bytes.get() + extra_bytes > limit_bytes:
            may_leave = (self._shared.states.numpy() == ShardState.LOCAL) & self._fetched
            may_leave[shard] = False
            if not may_leave.any():
                return False
            others = np.flatnonzero(may_leave)
            self._evict(int(others[self._shared.access_times[others].argmin()]))
        self._add_usage(extra_bytes)
        return True

    def _evict(self, shard: int) -> None:
        files = self._files[shard]
        self._shared.states[shard] = ShardState.REMOTE
        self._add_usage(-files.bytes_on_disk())
        for path in files.paths:
            path.unlink(missing_ok=True)

    def _add_usage(self, extra_bytes: int) -> None:
        self._shared.usage_bytes.set(self._shared.usage_bytes.get() + extra_bytes)

    def _fail(self, message: str) -> None:
        with self._lock():
            self._shared.board.fail(message)

    def _count(self, checks: ShardChecks) -> None:
        with self._lock():
            self._shared.board.add_checks(checks)

    def _lock(self) -> FileLock:
        return FileLock(self._shared.lock_file)


def check_cache_limit(files: Sequence[ShardFiles], fetch: FetchSettings | None) -> None:
    """Raises DataError where the cache is too small for the fetched ones among `files`."""
    largest = max((shard.most_bytes for shard in files if shard.is_remote), default=0)
    if fetch is None or fetch.cache_limit_bytes is None or fetch.cache_limit_bytes >= _LEAST_SHARDS * largest:
        return
    raise DataError(
        f"a cache of {fetch.cache_limit_bytes:,} bytes is too small for shards of up to {largest:,} bytes; it must "
        f"hold {_LEAST_SHARDS} of them, and better as many as a run reads at a time"
    )


def _lives(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    # The state follows the name, which stands in parentheses and may hold any character.
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")
