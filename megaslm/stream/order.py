"""The order of a run's rows: a function of numbers alone.

Rows are numbered over the streams, one after the other. An epoch is a sequence of row numbers in the order of time:
step after step takes the next `batch_rows` of them, so that the number of ranks does not matter.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Optional

import numpy as np
from numpy.typing import NDArray

from megaslm.dataset.mosaic import get_shuffle

Numbers = NDArray[np.integer]

_SHUFFLE = "py1e"
# As streaming does: rows of a shard are spread over so many rows, on all canonical nodes together.
_BLOCK_ROWS, _LEAST_BLOCK_ROWS = 4_000_000, 1 << 18
_LABELS, _ROWS = range(2)


class Extent(NamedTuple):
    """How many rows the streams of a run had, from an epoch on."""

    first_epoch: int
    rows: tuple[int, ...]
    """Of each stream."""
    shares: tuple[float, ...] | None
    """As `RowOrder.shares`."""


@dataclass(frozen=True)
class RowOrder:
    """Which row comes when.

    Without shares it is the order of streaming's `StreamingDataset` over the same shards: each row once an epoch, but
    for fewer than one batch, which are others in each epoch. With shares, a stream gives its share of each epoch's
    rows, and no row of it comes again before every other one has come: it goes on where the last epoch has ended.

    Streams may become longer: epochs before `first_epoch` are those of `before`, which has their first shards alone.
    """

    shards: tuple[tuple[int, ...], ...]
    """The rows of each shard of each stream."""
    shares: tuple[float, ...] | None
    """Each stream's share of an epoch's rows; None: as many as it has."""
    batch_rows: int
    """Of one step, over all ranks; a multiple of `canonical_nodes`."""
    canonical_nodes: int
    """Nodes that have shards of their own, where there are no shares; those of a run divide it or are divided by it."""
    seed: int
    before: Optional["RowOrder"] = None
    first_epoch: int = 0

    @cached_property
    def rows(self) -> int:
        """Over all streams."""
        return sum(map(sum, self.shards))

    @cached_property
    def rows_per_epoch(self) -> int:
        """Of the epochs from `first_epoch` on; whole batches only."""
        return self.rows // self.batch_rows * self.batch_rows

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The smallest that holds every row's number."""
        return np.dtype(np.uint32 if self.rows <= 1 << 32 else np.uint64)

    def rows_in(self, epoch: int) -> int:
        """How many rows an epoch has."""
        if self.before is not None and epoch < self.first_epoch:
            return self.before.rows_in(epoch)
        return self.rows_per_epoch

    def place_of(self, rows_seen: int) -> tuple[int, int]:
        """The epoch that the row after so many is in, and how many rows of it come before."""
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

    def of_step(self, step: int) -> Numbers:
        """The rows of a step, (batch_rows,); the first is step 1."""
        epoch, begin = self.place_of((step - 1) * self.batch_rows)
        numbers = np.empty(self.rows_in(epoch), self.dtype)
        self.fill(epoch, numbers)
        return numbers[begin : begin + self.batch_rows]

    @cached_property
    def _rows_before(self) -> int:
        """How many rows come before `first_epoch`."""
        if self.before is None:
            return 0
        epochs = self.first_epoch - self.before.first_epoch
        return self.before._rows_before + epochs * self.before.rows_per_epoch

    def _renumber(self, numbers: Numbers, before: "RowOrder") -> None:
        """Streams that have become longer move the numbers of those behind them."""
        ends, ends_before = (np.cumsum([sum(shards) for shards in order.shards]) for order in (self, before))
        moved = np.concatenate([[0], (ends - ends_before)[:-1]]).astype(numbers.dtype)
        if moved.any():
            numbers += moved[np.searchsorted(ends_before, numbers, side="right")]

    def _fill_evenly(self, epoch: int, numbers: Numbers) -> None:
        sizes, left_out = self._left_out(epoch)
        block_rows = max(_BLOCK_ROWS // self.canonical_nodes, _LEAST_BLOCK_ROWS)
        shuffled = get_shuffle(_SHUFFLE, sizes, self.canonical_nodes, self.seed, epoch, block_rows)
        # Of the rows that stay, counted by themselves, so many stand in front of each that is left out.
        in_front = left_out - np.arange(len(left_out))
        for node, part in enumerate(np.split(shuffled, self.canonical_nodes)):
            numbers[node :: self.canonical_nodes] = part + np.searchsorted(in_front, part, side="right")

    def _left_out(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """How many rows stay of each shard that keeps any, and the rows that are left out, in ascending order."""
        stay, left_out, first_row = [], [], 0
        picked = np.random.default_rng(self.seed + epoch)
        for shards, drawn in zip(self.shards, self._drawn, strict=True):
            ends = np.cumsum(shards)
            # As streaming's get_sampling, which takes a step of Python for each row.
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
        """So many rows of a stream, counted in it, from the `begin`th on of pass after pass."""
        # What a pass over fewer rows has had already counts as had in the first pass over more.
        begun = self._begun_pass(stream)
        begin += len(begun)
        rows, end = sum(self.shards[stream]), begin + count
        drawn = [np.empty(0, np.int64)]
        for number in range(begin // rows, -(-end // rows)):
            whole = self._pass(stream, number, begun)
            drawn.append(whole[max(0, begin - number * rows) : end - number * rows])
        return np.concatenate(drawn)

    def _pass(self, stream: int, number: int, begun: NDArray[np.int64]) -> NDArray[np.int64]:
        """A pass over a stream; the first one begins with what has `begun` it."""
        words = [self.seed, _ROWS, stream, *([self.first_epoch] if self.first_epoch else [])]
        seed = int(np.random.SeedSequence(words).generate_state(1)[0])
        whole = get_shuffle(_SHUFFLE, np.array(self.shards[stream]), 1, seed, number, _LEAST_BLOCK_ROWS)
        return whole if number else np.concatenate([begun, whole[np.isin(whole, begun, invert=True)]])

    def _begun_pass(self, stream: int) -> NDArray[np.int64]:
        """The rows of a stream that its last pass had when it became longer."""
        if self.before is None:
            return np.empty(0, np.int64)
        before = self.before
        begun = before._begun_pass(stream)
        drawn = (self.first_epoch - before.first_epoch) * before._drawn[stream]
        number, had = divmod(len(begun) + drawn, sum(before.shards[stream]))
        return before._pass(stream, number, begun)[:had]

    @cached_property
    def _drawn(self) -> tuple[int, ...]:
        """How many rows of each stream an epoch has: shares rounded down, and what is left to some of them."""
        rows = np.array([sum(shards) for shards in self.shards])
        if self.shares is None and self.rows == self.rows_per_epoch:
            return tuple(rows.tolist())
        shares = rows.astype(np.float64) if self.shares is None else np.array(self.shares, dtype=np.float64)
        drawn = (self.rows_per_epoch * (shares / shares.sum())).astype(np.int64)
        left = self.rows_per_epoch - int(drawn.sum())
        drawn[np.random.default_rng(self.seed).choice(len(drawn), left, replace=False)] += 1
        return tuple(drawn.tolist())


def first_place(rank: int, world_size: int, host_ranks: int) -> int:
    """The place of a rank's first row in a step; the next ones follow at distances of `world_size`.

    Hosts take turns, so that each keeps to canonical nodes of its own; the ranks of a host share what is the host's.
    """
    hosts = world_size // host_ranks if world_size % host_ranks == 0 else 1
    host, local_rank = divmod(rank, world_size // hosts)
    return host + hosts * local_rank
