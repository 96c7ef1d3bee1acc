"""The mixture that a run reads: domains of datasets, each with its share of an epoch. Imports no torch."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from megaslm.config.section import Split
from megaslm.dataset.manifest import Manifest
from megaslm.errors import DataError
from megaslm.slm.visits import MOST_VISITS

TRAINING: Split = "train"
"""The split that runs are trained on."""


@dataclass(frozen=True)
class MixtureStream:
    """One domain of one dataset, as the training stream reads it."""

    local: Path
    """The folder with index.json: DATASET/train/DOMAIN, or its cache if it is remote."""
    remote: str | None
    """The URL of that folder, to fetch shards from; None if all shards are local."""
    rows: int
    """Its rows, by the manifest."""
    domain: int
    """The number of the domain in the run."""
    proportion: float | None
    """Its share of an epoch's rows. None for all streams if each row comes once per epoch."""


@dataclass(frozen=True)
class MixtureDataset:
    """One dataset of a run, and its share."""

    name: str | None
    """Its name among the streams; None for the only dataset of a run."""
    local: Path
    """The dataset's folder."""
    remote: str | None
    """The URL of the dataset if `local` is its cache."""
    manifest: Manifest
    domains: tuple[str, ...]
    """The domains to read, at least one, each with training rows."""
    weight: float | None = None
    """Its share of an epoch's rows, relative to the other weights. All datasets have one, or none has."""
    repeat: float = 1.0
    """How often its rows are read, relative to the other datasets. It has no effect beside a weight."""

    @property
    def rows(self) -> int:
        """Training rows of the domains that are read."""
        return sum(self.rows_of(domain) for domain in self.domains)

    def rows_of(self, domain: str) -> int:
        """Training rows of one domain."""
        return self.manifest.splits[TRAINING][domain].rows

    def name_of(self, domain: str) -> str:
        """The name of a domain in the run.

        DOMAIN if the run has only one dataset, else STREAM/DOMAIN, or STREAM if the stream has only one domain.
        """
        if self.name is None:
            return domain
        return self.name if len(self.domains) == 1 else f"{self.name}/{domain}"


@dataclass(frozen=True)
class Mixture:
    """All streams of a run, one per domain, in the order of the domains' numbers."""

    streams: tuple[MixtureStream, ...]
    domains: tuple[str, ...]
    """The names of the domains in the run."""

    @property
    def rows(self) -> int:
        """All rows."""
        return sum(stream.rows for stream in self.streams)

    def rows_per_epoch(self, global_batch_rows: int) -> int:
        """Rows of an epoch: all rows, rounded down to whole global batches."""
        return self.rows // global_batch_rows * global_batch_rows

    def row_name(self, number: int) -> str:
        """DOMAIN:ROW of a row number, counted over all streams, one after the other."""
        starts = [0, *accumulate(stream.rows for stream in self.streams)]
        place = bisect_right(starts, number) - 1
        return f"{self.domains[place]}:{number - starts[place]}"

    @property
    def may_repeat_rows(self) -> bool:
        """Whether a row may come twice in a step, as when a stream ends one pass and starts the next in it."""
        return any(stream.proportion is not None for stream in self.streams)

    def check_epoch(self, global_batch_rows: int) -> None:
        """Checks that an epoch holds rows of every domain, and no row more often than keys can tell apart.

        Raises DataError where a domain is drawn too rarely or too often.
        """
        rows_per_epoch = self.rows_per_epoch(global_batch_rows)
        for name, stream in zip(self.domains, self.streams, strict=True):
            if stream.proportion is None or not rows_per_epoch:
                continue
            share = f"{name}: its {stream.rows} rows get {stream.proportion:.3g} of an epoch of {rows_per_epoch} rows"
            # Shares are rounded down. The remaining rows go to some of the streams.
            fewest = int(rows_per_epoch * stream.proportion)
            if fewest < 1:
                raise DataError(f"{share}, less than one; raise the stream's weight or repeat, or leave the domain out")
            # The last pass of the previous epoch may end in this one.
            if math.ceil((fewest + 1) / stream.rows) + 1 > MOST_VISITS:
                raise DataError(f"{share}, each more than {MOST_VISITS} times; lower the stream's weight or repeat")


def plan_mixture(datasets: Sequence[MixtureDataset]) -> Mixture:
    """The streams of a run and their shares. A dataset's share is divided among its domains in proportion to rows.

    Raises DataError where a domain of a dataset is named twice.
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


def require_whole_batch(streams: Sequence[MixtureStream], global_batch_rows: int) -> None:
    """Raises DataError where the streams have fewer rows than one global batch."""
    rows = sum(stream.rows for stream in streams)
    if rows < global_batch_rows:
        raise DataError(
            f"{rows} training rows in {', '.join(str(stream.local) for stream in streams)}, fewer than the "
            f"{global_batch_rows} of one global batch; lower train.global_batch_tokens or prepare more text"
        )


def _check_read_once(datasets: Sequence[MixtureDataset]) -> None:
    seen: dict[Path, str] = {}
    for dataset in datasets:
        for domain in dataset.domains:
            folder = (dataset.local / TRAINING / domain).resolve()
            name = dataset.name_of(domain)
            if folder in seen:
                raise DataError(f"{name}: reads {folder}, as {seen[folder]} does; name each domain of a dataset once")
            seen[folder] = name
