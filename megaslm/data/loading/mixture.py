"""What a run reads: domains of datasets, each with its share of an epoch."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from megaslm.config.schema import Split
from megaslm.data.dataset.manifest import Manifest
from megaslm.errors import DataError
from megaslm.slm.keys import MOST_VISITS

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

    def row_name(self, number: int) -> str:
        """DOMAIN:ROW of a row that is numbered over all streams, one after the other."""
        starts = [0, *accumulate(stream.rows for stream in self.streams)]
        place = bisect_right(starts, number) - 1
        return f"{self.domains[place]}:{number - starts[place]}"

    def may_repeat_rows(self, global_batch_rows: int) -> bool:
        """Whether a row may come more than once in an epoch, and so in a step."""
        rows_per_epoch = self.rows_per_epoch(global_batch_rows)
        return any(self._most_drawn(stream, rows_per_epoch) > stream.rows for stream in self.streams)

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
            if int(rows_per_epoch * stream.proportion) < 1:
                raise DataError(f"{share}, less than one; raise the stream's weight or repeat, or leave the domain out")
            if math.ceil(self._most_drawn(stream, rows_per_epoch) / stream.rows) > MOST_VISITS:
                raise DataError(f"{share}, each more than {MOST_VISITS} times; lower the stream's weight or repeat")

    def _most_drawn(self, stream: MixtureStream, rows_per_epoch: int) -> int:
        """The most rows that an epoch may hold of a stream: shares are rounded down, what is left goes to some."""
        proportion = stream.proportion
        if proportion is None:
            proportion = stream.rows / sum(other.rows for other in self.streams)
        return int(rows_per_epoch * proportion) + 1


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


def _check_read_once(datasets: Sequence[MixtureDataset]) -> None:
    seen: dict[Path, str] = {}
    for dataset in datasets:
        for domain in dataset.domains:
            folder = (dataset.local / TRAINING / domain).resolve()
            name = dataset.name_of(domain)
            if folder in seen:
                raise DataError(f"{name}: reads {folder}, as {seen[folder]} does; name each domain of a dataset once")
            seen[folder] = name
