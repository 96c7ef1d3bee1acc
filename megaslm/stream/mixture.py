"""What a run reads: domains of datasets, each with its share of an epoch."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from megaslm.config.plan import BatchPlan
from megaslm.config.schema import Split
from megaslm.dataset.index import ShardIndex
from megaslm.dataset.manifest import Manifest
from megaslm.errors import DataError
from megaslm.slm.keys import MOST_VISITS
from megaslm.stream.order import Extent, RowOrder

TRAINING: Split = "train"
"""The split that runs are trained on."""


@dataclass(frozen=True)
class MixtureStream:
    """One domain of one dataset, as the training stream reads it."""

    local: Path
    """The folder with index.json: DATASET/train/DOMAIN, or the cache of a remote one."""
    remote: str | None
    """The URL of that folder, from where shards are fetched; None where all is local."""
    rows: int
    """How many it has, by the manifest."""
    domain: int
    """The number of the domain in the run."""
    proportion: float | None
    """Its share of an epoch's rows; None, then for all streams, where each row comes once an epoch."""


@dataclass(frozen=True)
class MixtureDataset:
    """One dataset of a run, and how much of it is read."""

    name: str | None
    """Its name among the streams; None for the only dataset of a run."""
    local: Path
    """The dataset's folder."""
    remote: str | None
    """The URL of the dataset, where `local` is its cache."""
    manifest: Manifest
    """Of the dataset."""
    domains: tuple[str, ...]
    """The domains to read, at least one, each with training rows."""
    weight: float | None = None
    """Its share of an epoch's rows, relative to the weights of the others; all datasets have one, or none has."""
    repeat: float = 1.0
    """How often its rows are read, relative to those of the others; without effect beside a weight."""

    @property
    def rows(self) -> int:
        """Training rows of the domains that are read."""
        return sum(self.rows_of(domain) for domain in self.domains)

    def rows_of(self, domain: str) -> int:
        """Training rows of one domain."""
        return self.manifest.splits[TRAINING][domain].rows

    def name_of(self, domain: str) -> str:
        """What a domain is called in the run.

        Its own name where there is but one dataset, else STREAM/DOMAIN; a stream of one domain goes by its own name.
        """
        if self.name is None:
            return domain
        return self.name if len(self.domains) == 1 else f"{self.name}/{domain}"


@dataclass(frozen=True)
class Mixture:
    """All that a run reads: one stream a domain, in the order of the domains' numbers."""

    streams: tuple[MixtureStream, ...]
    domains: tuple[str, ...]
    """What the domains are called in the run."""

    def rows_per_epoch(self, global_batch_rows: int) -> int:
        """Rows of an epoch: as many as there are, in whole global batches."""
        return sum(stream.rows for stream in self.streams) // global_batch_rows * global_batch_rows

    @property
    def extent(self) -> Extent:
        """How many rows there are, from the first epoch on."""
        return extent_of(self.streams)

    def row_name(self, number: int) -> str:
        """DOMAIN:ROW of a row that is numbered over all streams, one after the other."""
        starts = [0, *accumulate(stream.rows for stream in self.streams)]
        place = bisect_right(starts, number) - 1
        return f"{self.domains[place]}:{number - starts[place]}"

    @property
    def may_repeat_rows(self) -> bool:
        """Whether a row may come more than once in a step, as where a stream ends a pass in it and begins the next."""
        return any(stream.proportion is not None for stream in self.streams)

    def check_epoch(self, global_batch_rows: int) -> None:
        """Checks that an epoch holds something of every domain, and no row more often than keys can tell apart.

        Raises:
            DataError: a domain is drawn too rarely or too often.
        """
        rows_per_epoch = self.rows_per_epoch(global_batch_rows)
        for name, stream in zip(self.domains, self.streams, strict=True):
            if stream.proportion is None or not rows_per_epoch:
                continue
            share = f"{name}: its {stream.rows} rows get {stream.proportion:.3g} of an epoch of {rows_per_epoch} rows"
            # Shares are rounded down, and what is left goes to some of the streams.
            fewest = int(rows_per_epoch * stream.proportion)
            if fewest < 1:
                raise DataError(f"{share}, less than one; raise the stream's weight or repeat, or leave the domain out")
            # The last pass of the epoch before may end in this one.
            if math.ceil((fewest + 1) / stream.rows) + 1 > MOST_VISITS:
                raise DataError(f"{share}, each more than {MOST_VISITS} times; lower the stream's weight or repeat")


def plan_mixture(datasets: Sequence[MixtureDataset]) -> Mixture:
    """The streams of a run and their shares: a dataset's share is divided among its domains by their rows.

    Raises:
        DataError: a domain of a dataset is named twice.
    """
    _check_read_once(datasets)
    even = all(dataset.weight is None and dataset.repeat == 1 for dataset in datasets)
    amounts = [dataset.rows * dataset.repeat if dataset.weight is None else dataset.weight for dataset in datasets]
    streams: list[MixtureStream] = []
    for dataset, amount in zip(datasets, amounts, strict=True):
        for domain in dataset.domains:
            rows = dataset.rows_of(domain)
            streams.append(
                MixtureStream(
                    local=dataset.local / TRAINING / domain,
                    remote=None if dataset.remote is None else f"{dataset.remote}/{TRAINING}/{domain}",
                    rows=rows,
                    domain=len(streams),
                    proportion=None if even else amount / math.fsum(amounts) * rows / dataset.rows,
                )
            )
    names = (dataset.name_of(domain) for dataset in datasets for domain in dataset.domains)
    return Mixture(tuple(streams), tuple(names))


def extent_of(streams: Sequence[MixtureStream]) -> Extent:
    """How many rows the streams have, from the first epoch on."""
    shares = tuple(stream.proportion for stream in streams if stream.proportion is not None) or None
    return Extent(0, tuple(stream.rows for stream in streams), shares)


def order_of(
    streams: Sequence[MixtureStream],
    indices: Sequence[ShardIndex],
    plan: BatchPlan,
    *,
    seed: int,
    extents: Sequence[Extent] = (),
) -> RowOrder:
    """The order in which a run reads its streams, whose indices these are.

    `extents`: how long they were from which epoch on, the last as they are; none where they have always been so.

    Raises:
        DataError: they have fewer rows than one global batch.
    """
    before: RowOrder | None = None
    for extent in extents or (extent_of(streams),):
        shards = tuple(_first_shards(index, rows) for index, rows in zip(indices, extent.rows, strict=True))
        order = RowOrder(
            shards, extent.shares, plan.global_batch_rows, plan.canonical_nodes, seed, before, extent.first_epoch
        )
        before = order
    if order.rows_per_epoch == 0:
        raise DataError(
            f"{order.rows} training rows in {', '.join(str(stream.local) for stream in streams)}, fewer than the "
            f"{plan.global_batch_rows} of one global batch; lower train.global_batch_tokens or prepare more text"
        )
    return order


def lengthened(
    extents: tuple[Extent, ...], now: Extent, rows_seen: int, order: Callable[[tuple[Extent, ...]], RowOrder]
) -> tuple[Extent, ...]:
    """The extents of a run that has read `rows_seen` rows, with one more where its streams are longer `now`.

    An epoch that has begun ends as it would have ended; what is new comes from the next one on.
    """
    if not extents:
        return (now,)
    if extents[-1].rows == now.rows:
        return extents
    epoch, rows_into_epoch = order(extents).place_of(rows_seen)
    return (*extents, now._replace(first_epoch=epoch + (rows_into_epoch > 0)))


def _first_shards(index: ShardIndex, rows: int) -> tuple[int, ...]:
    """The rows of each of a stream's first shards, which have so many in all."""
    shards = tuple(shard.samples for shard in index.shards)
    return shards[: [0, *accumulate(shards)].index(rows)]


def _check_read_once(datasets: Sequence[MixtureDataset]) -> None:
    seen: dict[Path, str] = {}
    for dataset in datasets:
        for domain in dataset.domains:
            folder = (dataset.local / TRAINING / domain).resolve()
            name = dataset.name_of(domain)
            if folder in seen:
                raise DataError(f"{name}: reads {folder}, as {seen[folder]} does; name each domain of a dataset once")
            seen[folder] = name
