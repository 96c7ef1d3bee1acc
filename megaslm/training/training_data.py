"""The datasets of a run: opened, compared with one another and with the run, and planned as one mixture."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from megaslm.config.schema import DataSection, RunConfig, StreamSection
from megaslm.data.dataset.layout import check_layout
from megaslm.data.dataset.manifest import Manifest, read_manifest
from megaslm.data.dataset.shards import RowFormat
from megaslm.data.loading.mixture import TRAINING, Mixture, MixtureDataset, plan_mixture
from megaslm.data.storage.dataset_folder import DatasetFolder, open_dataset
from megaslm.errors import DataError
from megaslm.training.provenance_check import NamedReference


@dataclass(frozen=True)
class TrainingDataset:
    """One dataset of a run."""

    setting: str
    """The key that names it: data.train or data.streams.NAME."""
    stream: str | None
    """Its NAME among data.streams."""
    source: DatasetFolder
    manifest: Manifest
    domains: tuple[str, ...]
    """Those that are read."""
    section: StreamSection
    """What the configuration says of it."""
    reference: NamedReference | None
    """The model that scored it, where the run names one."""

    def share(self) -> MixtureDataset:
        """What the mixture has to know of it."""
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
    """All that a run trains on."""

    datasets: tuple[TrainingDataset, ...]
    mixture: Mixture

    @property
    def first(self) -> TrainingDataset:
        """The first dataset: where tokenizer and rows are concerned, the others are like it."""
        return self.datasets[0]

    @property
    def eos_id(self) -> int:
        """What ends every document."""
        return self.first.manifest.eos_id


def open_training_data(config: RunConfig) -> TrainingData:
    """Checks that the datasets are whole and are what the run needs, as far as can be seen without a model.

    Raises:
        DataError: they are not; the message names both sides.
    """
    datasets = tuple(_opened(config))
    for dataset in datasets[1:]:
        _check_alike(datasets[0], dataset)
    mixture = plan_mixture([dataset.share() for dataset in datasets])
    mixture.check_epoch(config.train.global_batch_tokens // config.data.seq_len)
    for dataset in datasets:
        check_layout(dataset.source.path, shards_are_here=dataset.source.url is None)
    return TrainingData(datasets, mixture)


def fetch_descriptions(config: RunConfig, data: TrainingData) -> None:
    """Brings what is needed of remote datasets beside their shards into this host's cache; called once on each host.

    Raises:
        DataError: a dataset cannot be fetched, or is not the one that the first rank has opened.
    """
    for dataset in data.datasets:
        if dataset.source.url is not None:
            here = open_dataset(dataset.source.url, config.data.fetch.cache)
            if read_manifest(here.path) != dataset.manifest:
                raise DataError(f"{dataset.source.url} has changed since the first rank has opened it; start again")


class _Keys(NamedTuple):
    """Where the settings of a dataset stand in the configuration."""

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
    if manifest.seq_len != data.seq_len:
        raise DataError(
            f"{source.place} has rows of {manifest.seq_len} targets; data.seq_len = {data.seq_len}; set one to the "
            "other"
        )
    present = manifest.splits.get(TRAINING, {})
    domains = section.domains or tuple(present)
    missing = [domain for domain in domains if domain not in present]
    if missing or not domains:
        raise DataError(
            f"{keys.domains}: {source.place} has no training rows of {', '.join(missing) or 'any domain'}; it has "
            f"{', '.join(present) or 'none'}"
        )
    reference = None if section.reference is None else NamedReference(keys.reference, Path(section.reference))
    return TrainingDataset(keys.dataset, stream, source, manifest, domains, section, reference)


def _check_alike(one: TrainingDataset, other: TrainingDataset) -> None:
    """Whether rows of both may stand in one batch.

    Raises:
        DataError: the text was tokenised otherwise, or something beside the tokens is stored in one alone.
    """
    for here, there in zip(_traits(one, other), _traits(other, one), strict=True):
        if here.value != there.value:
            raise DataError(
                f"{one.setting} = {one.source.place} has {here.name} {here.value}, {other.setting} = "
                f"{other.source.place} has {there.value}: rows of both cannot be trained on together; {here.remedy}"
            )


class _Trait(NamedTuple):
    """What the datasets of a run have to have in common."""

    name: str
    value: str
    remedy: str


def _traits(dataset: TrainingDataset, beside: TrainingDataset) -> tuple[_Trait, ...]:
    manifest = dataset.manifest
    columns = sorted(set(RowFormat.of(manifest).columns) - {"domain"})
    return (
        _Trait(
            "the tokenizer",
            f"{manifest.ids_fingerprint(beside.manifest)[:12]} of {manifest.vocab_size} ids, EOS {manifest.eos_id}",
            "prepare both with one tokenizer",
        ),
        _Trait(
            "the columns",
            " ".join(columns),
            "score both, with or without --entropy alike, mask both, or name the datasets that are not scored",
        ),
    )
