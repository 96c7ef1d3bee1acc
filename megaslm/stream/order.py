"""The order of a run's rows, a pure function of numbers.

Rows are numbered over the streams, one stream after the other. An epoch is a sequence of row numbers in reading order:
each step takes the next `batch_rows` of them, so the number of ranks does not matter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple, Optional

import numpy as np
from numpy.typing import NDArray

from megaslm.config.plan import BatchPlan
from megaslm.dataset.index import ShardIndex
from megaslm.dataset.mosaic import get_shuffle
from megaslm.stream.mixture import MixtureStream, require_whole_batch

Numbers = NDArray[np.integer]

_SHUFFLE = "py1e"
# As streaming does: the rows of a shard are spread over this many rows, over all canonical nodes together.
_BLOCK_ROWS, _LEAST_BLOCK_ROWS = 4_000_000, 1 << 18
_LABELS, _ROWS = range(2)


class Extent(NamedTuple):
    """The number of rows of a run's streams, from an epoch on."""

    first_epoch: int
    rows: tuple[int, ...]
    """Rows of each stream."""
    shares: tuple[float, ...] | None
    """As `RowOrder.shares`."""


@dataclass(frozen=True)
class RowOrder:
    """The order of rows.

    Without shares it is the order of streaming's `StreamingDataset` over the same shards: each row once per epoch,
    except for fewer than one batch of rows, different ones in each epoch. With shares, a stream gives its share of each
    epoch's rows. No row of it repeats before all others were read: a pass continues where the last epoch ended.

    Streams may become longer: epochs before `first_epoch` are those of `before`, which has only their first shards.
    """

    shards: tuple[tuple[int, ...], ...]
    """The rows of each shard of each stream."""
    shares: tuple[float, ...] | None
    """Each stream's share of an epoch's rows; None: each row once."""
    batch_rows: int
    """Rows of one step, over all ranks; a multiple of `canonical_nodes`."""
    canonical_nodes: int
    """Nodes that have shards of their own if there are no shares. A multiple or a divisor of the run's nodes."""
    seed: int
    before: Optional["RowOrder"] = None
    first_epoch: int = 0

    @cached_property
    def rows(self) -> int:
        """Rows over all streams."""
        return sum(map(sum, self.shards))

    @cached_property
    def rows_per_epoch(self) -> int:
        """Rows of each epoch from `first_epoch` on; whole batches only."""
        return self.rows // self.batch_rows * self.batch_rows

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The smallest type that holds every row number."""
        return np.dtype(np.uint32 if self.rows <= 1 << 32 else np.uint64)

    def rows_in(self, epoch: int) -> int:
        """The number of rows of an epoch."""
        if self.before is not None and epoch < self.first_epoch:
            return self.before.rows_in(epoch)
        return self.rows_per_epoch

    def place_of(self, rows_seen: int) -> tuple[int, int]:
        """The epoch of the row after `rows_seen` rows, and the number of rows before it in that epoch."""
        if self.before is not None and rows_seen < self._rows_before:
            return self.before.place_of(rows_seen)
        epochs, rows_into_epoch = divmod(rows_seen - self._rows_before, self.rows_per_epoch)
        return self.first_epoch + epochs, rows_into_epoch

    def fill(self, epoch: int, numbers: Numbers) -> None:
        """Writes an epoch into `numbers`, (rows_in(epoch),)."""
        if self.before is not None and epoch < self.first_epoch:
            self.before.fill(epoch, numbers)
            self._renumber(numbers, self.before)
        elif self.shares is None:
            self._fill_evenly(epoch, numbers)
        else:
            self._fill_by_shares(epoch, numbers)

    def step_after(self, rows_seen: int) -> Numbers:
        """The rows of the step that follows `rows_seen` rows, (batch_rows,)."""
        epoch, begin = self.place_of(rows_seen)
        numbers = np.empty(self.rows_in(epoch), self.dtype)
        self.fill(epoch, numbers)
        return numbers[begin : begin + self.batch_rows]

    @cached_property
    def _rows_before(self) -> int:
        if self.before is None:
            return 0
        epochs = self.first_epoch - self.before.first_epoch
        return self.before._rows_before + epochs * self.before.rows_per_epoch

    def _renumber(self, numbers: Numbers, before: "RowOrder") -> None:
        """Shifts the row numbers of streams that follow a stream that has become longer."""
        ends, ends_before = (np.cumsum([sum(shards) for shards in order.shards]) for order in (self, before))
        moved = np.concatenate([[0], (ends - ends_before)[:-1]]).astype(numbers.dtype)
        if moved.any():
            numbers += moved[np.searchsorted(ends_before, numbers, side="right")]

    def _fill_evenly(self, epoch: int, numbers: Numbers) -> None:
        sizes, left_out = self._left_out(epoch)
        block_rows = max(_BLOCK_ROWS // self.canonical_nodes, _LEAST_BLOCK_ROWS)
        shuffled = get_shuffle(_SHUFFLE, sizes, self.canonical_nodes, self.seed, epoch, block_rows)
        # For each left-out row, the number of kept rows in front of it.
        in_front = left_out - np.arange(len(left_out))
        for node, part in enumerate(np.split(shuffled, self.canonical_nodes)):
            numbers[node :: self.canonical_nodes] = part + np.searchsorted(in_front, part, side="right")

    def _left_out(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The number of kept rows of each shard that keeps any, and the left-out rows in ascending order."""
        stay, left_out, first_row = [], [], 0
        picked = np.random.default_rng(self.seed + epoch)
        for shards, drawn in zip(self.shards, self._drawn, strict=True):
            ends = np.cumsum(shards)
            # The same as streaming's get_sampling, which loops over rows in Python.
            dropped = np.random.default_rng(self.seed + epoch).permutation(ends[-1])[drawn:] if drawn < ends[-1] else ()
            fewer = np.bincount(np.searchsorted(ends, dropped, side="right"), minlength=len(shards))
            for rows, missing in zip(shards, fewer.tolist(), strict=True):
                stay.append(rows - missing)
                if 0 < missing < rows:
                    kept = picked.choice(rows, rows - missing, replace=False)
                    left_out.append(first_row + np.setdiff1d(np.arange(rows), kept))
                elif missing:
                    left_out.append(first_row + np.arange(rows))
                first_row += rows
        sizes = np.array([rows for rows in stay if rows], dtype=np.int64)
        return sizes, np.concatenate([np.empty(0, np.int64), *left_out])

    def _fill_by_shares(self, epoch: int, numbers: Numbers) -> None:
        labels = np.repeat(np.arange(len(self.shards), dtype=np.uint16), self._drawn)
        np.random.default_rng([self.seed, _LABELS, epoch]).shuffle(labels)
        first_row = 0
        for stream, (shards, drawn) in enumerate(zip(self.shards, self._drawn, strict=True)):
            passes = self._passes(stream, (epoch - self.first_epoch) * drawn, drawn)
            numbers[labels == stream] = first_row + passes
            first_row += sum(shards)

    def _passes(self, stream: int, begin: int, count: int) -> NDArray[np.int64]:
        """`count` rows of a stream, numbered within it, from position `begin` of its consecutive passes on."""
        # Rows that the pass over the shorter stream has read count as read in the first pass over the longer one.
        begun = self._begun_pass(stream)
        begin += len(begun)
        rows, end = sum(self.shards[stream]), begin + count
        drawn = [np.empty(0, np.int64)]
        for number in range(begin // rows, -(-end // rows)):
            whole = self._pass(stream, number, begun)
            drawn.append(whole[max(0, begin - number * rows) : end - number * rows])
        return np.concatenate(drawn)

    def _pass(self, stream: int, number: int, begun: NDArray[np.int64]) -> NDArray[np.int64]:
        """A pass over a stream. The first pass starts with the rows `begun`."""
        words = [self.seed, _ROWS, stream, *([self.first_epoch] if self.first_epoch else [])]
        seed = int(np.random.SeedSequence(words).generate_state(1)[0])
        whole = get_shuffle(_SHUFFLE, np.array(self.shards[stream]), 1, seed, number, _LEAST_BLOCK_ROWS)
        return whole if number else np.concatenate([begun, whole[np.isin(whole, begun, invert=True)]])

    def _begun_pass(self, stream: int) -> NDArray[np.int64]:
        """The rows that a stream's last pass had read when the stream became longer."""
        if self.before is None:
            return np.empty(0, np.int64)
        before = self.before
        begun = before._begun_pass(stream)
        drawn = (self.first_epoch - before.first_epoch) * before._drawn[stream]
        number, had = divmod(len(begun) + drawn, sum(before.shards[stream]))
        return before._pass(stream, number, begun)[:had]

    @cached_property
    def _drawn(self) -> tuple[int, ...]:
        """The rows of each stream in an epoch: shares rounded down, the remaining rows given to some streams."""
        rows = np.array([sum(shards) for shards in self.shards])
        if self.shares is None and self.rows == self.rows_per_epoch:
            return tuple(rows.tolist())
        shares = rows.astype(np.float64) if self.shares is None else np.array(self.shares, dtype=np.float64)
        drawn = (self.rows_per_epoch * (shares / shares.sum())).astype(np.int64)
        left = self.rows_per_epoch - int(drawn.sum())
        drawn[np.random.default_rng(self.seed).choice(len(drawn), left, replace=False)] += 1
        return tuple(drawn.tolist())


def first_place(rank: int, world_size: int, host_ranks: int) -> int:
    """The index of a rank's first row in a step. Its next rows follow at distances of `world_size`.

    Hosts take turns, so that each reads canonical nodes of its own. The ranks of a host share the host's rows.
    """
    hosts = world_size // host_ranks if world_size % host_ranks == 0 else 1
    host, local_rank = divmod(rank, world_size // hosts)
    return host + hosts * local_rank


def extent_of(streams: Sequence[MixtureStream]) -> Extent:
    """The number of rows of the streams, from the first epoch on."""
    shares = tuple(stream.proportion for stream in streams if stream.proportion is not None) or None
    return Extent(0, tuple(stream.rows for stream in streams), shares)


def order_of(
    streams: Sequence[MixtureStream],
    indices: Sequence[ShardIndex],
    plan: BatchPlan,
    seed: int,
    extents: tuple[Extent, ...] = (),
) -> RowOrder:
    """The order in which a run reads its streams; `indices` are theirs.

    `extents`: the lengths of the streams, from which epoch on, the current ones last; empty if they never changed.

    Raises DataError where they have fewer rows than one global batch.
    """
    require_whole_batch(streams, plan.global_batch_rows)
    before: RowOrder | None = None
    for extent in extents or (extent_of(streams),):
        shards = tuple(_first_shards(index, rows) for index, rows in zip(indices, extent.rows, strict=True))
        order = RowOrder(
            shards, extent.shares, plan.global_batch_rows, plan.canonical_nodes, seed, before, extent.first_epoch
        )
        before = order
    return order


def lengthened(
    extents: tuple[Extent, ...], now: Extent, rows_seen: int, order: Callable[[tuple[Extent, ...]], RowOrder]
) -> tuple[Extent, ...]:
    """The extents of a run that has read `rows_seen` rows, with one more if its streams are longer `now`.

    An epoch that has started is not changed. New rows come from the next epoch on.
    """
    if not extents:
        return (now,)
    if extents[-1].rows == now.rows:
        return extents
    epoch, rows_into_epoch = order(extents).place_of(rows_seen)
    return (*extents, now._replace(first_epoch=epoch + (rows_into_epoch > 0)))


def _first_shards(index: ShardIndex, rows: int) -> tuple[int, ...]:
    """The rows of each of a stream's first shards, up to `rows` in total."""
    shards = tuple(shard.samples for shard in index.shards)
    return shards[: [0, *accumulate(shards)].index(rows)]
