"""The datasets of a run: opens them, compares them with one another and with the run, and plans one mixture."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megaslm.config.schema import DataSection, RunConfig, StreamSection
from megaslm.dataset.fit import (
    ReadDataset,
    require_columns,
    require_distillable,
    require_named_domains,
    require_targets_of,
    require_weights,
    training_domains,
)
from megaslm.dataset.folder import check_layout
from megaslm.dataset.manifest import Manifest, Reference, read_manifest
from megaslm.dataset.remote import DatasetFolder, open_dataset
from megaslm.dataset.shards import RowFormat
from megaslm.errors import DataError, ReferenceMismatch
from megaslm.model.weight_files import weights_sha256
from megaslm.stream.mixture import Mixture, MixtureDataset, plan_mixture


class DomainCounts:
    """Rows read of each domain, over all ranks, from the first step on."""

    def __init__(self, mixture: Mixture, seq_len: int, rows_read: Mapping[str, int]) -> None:
        """Counts on from `rows_read`; a missing domain counts as 0."""
        self._mixture = mixture
        self._seq_len = seq_len
        self._rows_read = {name: rows_read.get(name, 0) for name in mixture.domains}

    def add(self, rows: Sequence[int]) -> None:
        """Adds the rows of a step, in the order of the domains' numbers."""
        for name, count in zip(self._mixture.domains, rows, strict=True):
            self._rows_read[name] += count

    @property
    def rows_read(self) -> dict[str, int]:
        """The rows read of each domain, as `__init__` takes them."""
        return dict(self._rows_read)

    @property
    def tokens(self) -> dict[str, int]:
        """Targets read of each domain."""
        return {name: rows * self._seq_len for name, rows in self._rows_read.items()}

    @property
    def passes(self) -> dict[str, float]:
        """Mean number of passes over each domain: rows read divided by its rows."""
        return {
            name: self._rows_read[name] / stream.rows
            for name, stream in zip(self._mixture.domains, self._mixture.streams, strict=True)
        }


@dataclass(frozen=True)
class NamedReference:
    """A reference model that the configuration names."""

    setting: str
    """The setting that names it."""
    folder: Path
    """Its Hugging Face folder."""


def spread_evenly(rows: int, of: int) -> list[int]:
    """The numbers of `rows` rows, spread evenly over `of` rows; all of them if `of` is smaller."""
    return [int(number) for number in np.linspace(0, of, min(rows, of), endpoint=False)]


def check_provenance(
    found: Reference,
    manifest: Manifest,
    dataset: DatasetFolder,
    *,
    document_isolation: bool,
    reference: NamedReference | None,
    column: str | None = None,
) -> None:
    """Compares the record `found` in the manifest of `dataset` with its rows, the run and the model `reference`.

    `column`: the one of its losses; None for `ref_loss`.

    Raises:
        ReferenceMismatch: its losses were computed for other rows, with another document_isolation or other weights.
    """
    place = dataset.place if column is None else f"{dataset.place}, column {column}"
    if found.dataset_sha256 != manifest.tokens_fingerprint():
        raise ReferenceMismatch(
            f"{place}: its reference losses were computed for the rows {found.dataset_sha256[:12]}, it "
            f"holds the rows {manifest.tokens_fingerprint()[:12]}; score the dataset again"
        )
    if found.document_isolation != document_isolation:
        raise ReferenceMismatch(
            f"{place} was scored with document_isolation = {found.document_isolation}; the run has "
            f"model.document_isolation = {document_isolation}; losses with and without context are not comparable"
        )
    if reference is not None:
        at_hand = weights_sha256(reference.folder)
        if at_hand != found.weights_sha256:
            raise ReferenceMismatch(
                f"{dataset.place} was scored by {found.name} with weights {found.weights_sha256[:12]}; "
                f"{reference.setting} = {reference.folder} has weights {at_hand[:12]}; name the right folder or score "
                "the dataset again"
            )


@dataclass(frozen=True)
class TrainingDataset:
    """One dataset of a run."""

    setting: str
    """The setting that names it: data.train or data.streams.NAME."""
    stream: str | None
    """Its NAME among data.streams; None for data.train."""
    source: DatasetFolder
    manifest: Manifest
    domains: tuple[str, ...]
    """The domains that are read."""
    section: StreamSection
    """Its part of the configuration."""
    reference: NamedReference | None
    """The model that scored it, if the run names one."""

    def share(self) -> MixtureDataset:
        """The dataset as the mixture needs it."""
        return MixtureDataset(
            name=self.stream,
            local=self.source.path,
            remote=self.source.url,
            manifest=self.manifest,
            domains=self.domains,
            weight=self.section.weight,
            repeat=1.0 if self.section.repeat is None else self.section.repeat,
        )


@dataclass(frozen=True)
class TrainingData:
    """All data that a run trains on."""

    datasets: tuple[TrainingDataset, ...]
    mixture: Mixture

    @property
    def read(self) -> tuple[ReadDataset, ...]:
        """The datasets as their manifests describe them."""
        return tuple(ReadDataset(one.setting, one.manifest, one.domains) for one in self.datasets)

    @property
    def first(self) -> TrainingDataset:
        """The first dataset. The others have the same tokenizer and row format."""
        return self.datasets[0]

    @property
    def eos_id(self) -> int:
        """The token id that ends every document."""
        return self.first.manifest.eos_id


def open_training_data(config: RunConfig) -> TrainingData:
    """Opens the datasets and checks, without a model, that they are complete and fit the run.

    Raises:
        DataError: they do not; the message names both sides.
    """
    datasets = tuple(_opened(config))
    for dataset in datasets:
        named = f"{dataset.setting} = {dataset.source.place}"
        require_targets_of(config.train.objective, dataset.manifest, named)
        require_weights(config, dataset.manifest, named)
        require_columns(config, dataset.manifest, named)
        require_distillable(config, dataset.manifest, named)
    for dataset in datasets[1:]:
        _check_alike(datasets[0], dataset)
    mixture = plan_mixture([dataset.share() for dataset in datasets])
    require_named_domains(config, mixture.domains)
    mixture.check_epoch(config.train.global_batch_tokens // config.data.seq_len)
    for dataset in datasets:
        check_layout(dataset.source.path, shards_are_here=dataset.source.url is None)
    return TrainingData(datasets, mixture)


def fetch_descriptions(config: RunConfig, data: TrainingData) -> None:
    """Fetches the files of remote datasets, except their shards, into this host's cache. Called once per host.

    Raises DataError where a dataset cannot be fetched, or is not the one that the first rank opened.
    """
    for dataset in data.datasets:
        if dataset.source.url is not None:
            here = open_dataset(dataset.source.url, config.data.fetch.cache)
            if read_manifest(here.path) != dataset.manifest:
                raise DataError(f"{dataset.source.url} has changed since the first rank opened it; start again")


class _Keys(NamedTuple):
    """The settings of a dataset, by their full names."""

    dataset: str
    domains: str
    reference: str


def _opened(config: RunConfig) -> Iterator[TrainingDataset]:
    data = config.data
    if data.train is not None:
        section = StreamSection(dataset=data.train, domains=data.domains, reference=config.slm.reference)
        yield _open(section, None, _Keys("data.train", "data.domains", "slm.reference"), data)
    for name, section in data.streams.items():
        key = f"data.streams.{name}"
        yield _open(section, name, _Keys(key, f"{key}.domains", f"{key}.reference"), data)


def _open(section: StreamSection, stream: str | None, keys: _Keys, data: DataSection) -> TrainingDataset:
    source = open_dataset(section.dataset, data.fetch.cache)
    manifest = read_manifest(source.path)
    domains = training_domains(manifest, source.place, section.domains, setting=keys.domains, seq_len=data.seq_len)
    reference = None if section.reference is None else NamedReference(keys.reference, Path(section.reference))
    return TrainingDataset(keys.dataset, stream, source, manifest, domains, section, reference)


def _check_alike(one: TrainingDataset, other: TrainingDataset) -> None:
    """Checks that one batch may hold rows of both.

    Raises DataError where the tokenizers or the places of BOS differ, or one dataset has columns that the other lacks.
    """
    for here, there in zip(_traits(one, other), _traits(other, one), strict=True):
        if here.value != there.value:
            raise DataError(
                f"{one.setting} = {one.source.place} has {here.name} {here.value}, {other.setting} = "
                f"{other.source.place} has {there.value}: rows of both cannot be trained on together; {here.remedy}"
            )


class _Trait(NamedTuple):
    """A property that all datasets of a run must share."""

    name: str
    value: str
    remedy: str


def _traits(dataset: TrainingDataset, beside: TrainingDataset) -> tuple[_Trait, ...]:
    manifest = dataset.manifest
    form = RowFormat.of(manifest)
    columns, top = sorted(set(form.columns) - {"domain"}), form.top_logits
    return (
        _Trait(
            "the tokenizer",
            f"{manifest.ids_fingerprint(beside.manifest)[:12]} of {manifest.vocab_size} ids, EOS {manifest.eos_id}",
            "prepare both with one tokenizer",
        ),
        _Trait(
            "bos",
            manifest.bos_in_words,
            "prepare both with the same `bos` and one tokenizer",
        ),
        _Trait(
            "the columns",
            " ".join(columns) + (f" (--top-logits {top})" if top else ""),
            "score both (with the same --entropy and --top-logits), mask both, or name the datasets that are not "
            "scored; for a target_mask, prepare both in one recipe: texts beside conversations are trained on whole",
        ),
    )
