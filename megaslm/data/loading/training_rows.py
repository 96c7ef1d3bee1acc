"""Rows in the order of training, out of shards that are mapped into memory.

Which row comes when, and to which process, is streaming's; so are downloads and unpacking. How a shard becomes ready is
not: streaming serves damaged bytes, and waits for ever for a process that has died.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from time import monotonic, sleep
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megaslm.data.dataset.shard_index import read_index
from megaslm.data.dataset.shard_rows import rows_in
from megaslm.data.loading.fetch import FetchSettings
from megaslm.data.loading.mixture import MixtureStream
from megaslm.data.loading.shard_board import ShardBoard, ShardChecks
from megaslm.data.loading.shard_cache import ShardCache, SharedState, check_cache_limit
from megaslm.data.loading.shard_files import ShardFiles
from megaslm.data.loading.shard_supply import ShardSupply
from megaslm.data.stream import TICK, Stream, StreamingDataset
from megaslm.errors import DataError

# Each map keeps a file open, of which a process may have 1,024 where nobody has raised the limit.
_MOST_MAPS = 128


class Row(NamedTuple):
    """One row of a run."""

    number: int
    """Counted over the streams, one after the other."""
    domain: int
    """The number of its domain in the run."""
    columns: np.void
    """Its columns by name, as they are stored."""


@dataclass(frozen=True)
class RowOrder:
    """What decides which row comes when, and to whom."""

    epoch_rows: int
    batch_rows: int
    canonical_nodes: int
    shuffle_seed: int


class TrainingRows(StreamingDataset):
    """The rows of several streams, shuffled; a shard is checked once on each host before its first row is served."""

    def __init__(self, streams: Sequence[MixtureStream], order: RowOrder, fetch: FetchSettings | None) -> None:
        """Opens the streams; called on all ranks, contains barriers.

        Raises:
            DataError: an index is missing or damaged, the cache is too small, or a folder is read twice.
        """
        _refuse_repeated(streams)
        opened = [_open(stream, fetch) for stream in streams]
        self._files = [files for stream in opened for files in _files_of(stream)]
        check_cache_limit(self._files, fetch)
        super().__init__(
            streams=opened,
            epoch_size=_epoch_size(streams, order),
            batch_size=order.batch_rows,
            shuffle=True,
            num_canonical_nodes=order.canonical_nodes,
            shuffle_seed=order.shuffle_seed,
        )
        shared = SharedState(
            states=self._shard_states,
            access_times=self._shard_access_times,
            usage_bytes=self._cache_usage,
            board=ShardBoard(self._shm_prefix_int, len(self._files)),
            lock_file=self._cache_filelock_path,
        )
        self._shards = ShardCache(self._files, shared, fetch)
        if self._unique_rank_world.is_local_leader:
            self._shards.take_stock()
        self._domains = [streams[stream].domain for stream in self.stream_per_shard]
        self._ends = list(accumulate(files.shard.samples for files in self._files))
        self._maps: OrderedDict[int, NDArray[np.void]] = OrderedDict()

    @property
    def prefix(self) -> int:
        """What the names of its objects in shared memory begin with."""
        return int(self._shm_prefix_int)

    def start_at(self, epoch: int, rows_into_epoch: int) -> None:
        """Makes the next iteration begin there; all ranks call it, with the same numbers."""
        # streaming passes over a position before the epoch that it expects, and a run may go back.
        self.next_epoch = epoch
        self.load_state_dict(
            {
                "epoch": epoch,
                "sample_in_epoch": rows_into_epoch,
                "initial_physical_nodes": None,
                "num_canonical_nodes": self.num_canonical_nodes,
                "shuffle_seed": self.shuffle_seed,
            }
        )

    def checks(self) -> ShardChecks:
        """What comparing shards with their checksums has cost on this host so far."""
        return self._shards.checks()

    def __iter__(self) -> Iterator[Row]:
        """This process's rows of one epoch.

        Raises:
            DataError: a shard is damaged, cannot be fetched, or did not come in time.
        """
        self._unique_worker_world = self._unique_rank_world.detect_workers()
        self._parallel_worker_world = self._parallel_rank_world.detect_workers()
        numbers = self._get_work(*self._resume_incr_epoch())
        # Streaming fills up with -1 where processes have unequal shares.
        numbers = numbers[numbers >= 0]
        shards = np.searchsorted(self._ends, numbers, side="right")
        with ShardSupply(self._shards.make_ready) as supply:
            for shard in dict.fromkeys(shards[: self.predownload].tolist()):
                supply.ask(shard)
            for place in range(len(numbers)):
                if place + self.predownload < len(numbers):
                    self._foresee(int(shards[place + self.predownload]), supply)
                yield self._row(int(numbers[place]), int(shards[place]), supply)

    def get_item(self, sample_id: int, retry: int = 0) -> Row:
        """One row by its number. Raises DataError as iteration does; what is wrong stays so, whatever `retry` says."""
        with ShardSupply(self._shards.make_ready) as supply:
            return self._row(sample_id, bisect_right(self._ends, sample_id), supply)

    def _foresee(self, shard: int, supply: ShardSupply) -> None:
        if self._shards.is_ready(shard):
            self._shards.touch(shard)
        else:
            supply.ask(shard)

    def _row(self, number: int, shard: int, supply: ShardSupply) -> Row:
        rows = self._maps.get(shard)
        if rows is None or not self._shards.is_ready(shard):
            rows = self._map_once_ready(shard, supply)
        self._maps.move_to_end(shard)
        self._shards.touch(shard)
        return Row(number, self._domains[shard], rows[number - self._ends[shard]])

    def _map_once_ready(self, shard: int, supply: ShardSupply) -> NDArray[np.void]:
        started = monotonic()
        while True:
            if self._shards.is_ready(shard):
                try:
                    return self._map(shard)
                except FileNotFoundError:
                    # It has left the cache in this moment, and is fetched again.
                    pass
            supply.ask(shard, first=True)
            supply.raise_failure()
            self._shards.refuse_hopeless(shard, monotonic() - started)
            sleep(TICK)

    def _map(self, shard: int) -> NDArray[np.void]:
        """The rows of a shard, (samples,), left in its file until they are read."""
        files = self._files[shard]
        content = np.memmap(files.raw, dtype=np.uint8, mode="r").view(np.ndarray)
        rows = rows_in(files.raw, content, files.shard)
        # Maps of shards that have left the cache keep their files on the disk.
        for other in [other for other in self._maps if not self._shards.is_ready(other)]:
            del self._maps[other]
        if len(self._maps) == _MOST_MAPS:
            self._maps.popitem(last=False)
        self._maps[shard] = rows
        return rows


def _epoch_size(streams: Sequence[MixtureStream], order: RowOrder) -> int | None:
    """What streaming is told of an epoch's length; of whole datasets nothing.

    From a number it derives how many rows of each stream to draw, and its rounding may leave one out and take another
    twice.
    """
    takes_everything = all(stream.proportion is None for stream in streams)
    return None if takes_everything and sum(stream.rows for stream in streams) == order.epoch_rows else order.epoch_rows


def _refuse_repeated(streams: Sequence[MixtureStream]) -> None:
    folders = [stream.local for stream in streams]
    repeated = sorted({str(folder) for folder in folders if folders.count(folder) > 1})
    if repeated:
        raise DataError(f"{', '.join(repeated)} is read twice in one run; name it once, with the sum of its weights")


def _open(stream: MixtureStream, fetch: FetchSettings | None) -> Stream:
    share = {} if stream.proportion is None else {"proportion": stream.proportion}
    if stream.remote is None:
        return Stream(local=str(stream.local), **share)
    if fetch is None:
        raise ValueError(f"{stream.remote} cannot be read without FetchSettings")
    tries = fetch.retries + 1
    return Stream(
        remote=stream.remote,
        local=str(stream.local),
        download_retry=tries,
        download_timeout=fetch.timeout_seconds / tries,
        **share,
    )


def _files_of(stream: Stream) -> Iterator[ShardFiles]:
    first_row = 0
    for shard in read_index(Path(stream.local)).shards:
        yield ShardFiles(stream, shard, first_row)
        first_row += shard.samples
