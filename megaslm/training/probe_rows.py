"""The choice of a run's probe rows: fixed rows of its data whose losses are measured again and again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megaslm.config.schema import RunConfig
from megaslm.config.section import Split
from megaslm.dataset.manifest import Manifest, read_manifest
from megaslm.dataset.remote import DatasetFolder, open_dataset
from megaslm.dataset.rows import unpack_mask
from megaslm.errors import ConfigError, DataError
from megaslm.observe.probe_files import ProbeRows, read_rows, write_rows
from megaslm.slm.valid_targets import valid_targets
from megaslm.training.training_data import TrainingData, spread_evenly

_SPLITS: tuple[Split, ...] = ("heldout", "train")


@dataclass(frozen=True)
class _Place:
    """A domain that probe rows are taken from."""

    name: str
    """Its name in the run."""
    domain: str
    source: DatasetFolder
    manifest: Manifest

    @property
    def split(self) -> Split:
        """The split that has rows of it, the held-out one first."""
        return next(split for split in _SPLITS if self.rows_of(split))

    def rows_of(self, split: Split) -> int:
        """The number of its rows in a split."""
        share = self.manifest.splits.get(split, {}).get(self.domain)
        return 0 if share is None else share.rows


def keep_or_choose_rows(folder: Path, config: RunConfig, data: TrainingData) -> ProbeRows:
    """The probe rows of a run: those that its folder holds, or else those that `probe` chooses, written into it.

    Each domain gives `probe.rows` divided by the number of domains, rounded up. They are spread evenly over its
    held-out rows, from the first one on, or over its training rows if none are held out. So runs on the same rows,
    scored or not, have the same probe rows.

    Raises:
        ConfigError: the folder holds rows that were chosen by other settings.
        DataError: the dataset has other rows than the run, or the files are corrupt.
    """
    places, source = _places(config, data)
    found = check_probe(folder, config, data)
    if found is None:
        found = _chosen(places, data, _description(config, source), rows=config.probe.rows)
        write_rows(folder, found)
    return found


def check_probe(folder: Path, config: RunConfig, data: TrainingData) -> ProbeRows | None:
    """The probe rows that a run's folder holds; None where they are still to be chosen. Raises as
    `keep_or_choose_rows` does."""
    description = _description(config, _places(config, data)[1])
    found = read_rows(folder)
    if found is not None and found.description != description:
        raise ConfigError(
            f"probe: {folder} holds {found.description}, whose losses were measured; the settings ask for "
            f"{description}: undo the change of rows or dataset, or remove that folder to measure other rows from now "
            "on"
        )
    return found


def _description(config: RunConfig, source: str) -> str:
    return f"{config.probe.rows} rows of {source}"


def _places(config: RunConfig, data: TrainingData) -> tuple[list[_Place], str]:
    """The domains, and what they are domains of: for the training data the same if it has moved or become longer."""
    place = config.probe.dataset
    if place is None:
        places = [
            _Place(dataset.share().name_of(domain), domain, dataset.source, dataset.manifest)
            for dataset in data.datasets
            for domain in dataset.domains
        ]
        return places, "the training data"
    source = open_dataset(place, config.data.fetch.cache)
    manifest, training = read_manifest(source.path), data.first.manifest
    _require_alike(manifest, training, place)
    domains = dict.fromkeys(domain for split in _SPLITS for domain in manifest.splits.get(split, {}))
    places = [_Place(domain, domain, source, manifest) for domain in domains]
    places = [place for place in places if any(map(place.rows_of, _SPLITS))]
    if not places:
        raise DataError(f"probe.dataset = {place}: has no rows; name a dataset with rows")
    return places, f"the dataset {manifest.tokens_fingerprint()[:12]}"


def _require_alike(manifest: Manifest, training: Manifest, place: str) -> None:
    found, expected = (
        f"tokenizer {one.ids_fingerprint(other)[:12]}, EOS {one.eos_id}, bos {one.bos_in_words}, rows of {one.seq_len}"
        for one, other in ((manifest, training), (training, manifest))
    )
    if found != expected:
        raise DataError(
            f"probe.dataset = {place}: has {found}; the training data has {expected}; name a dataset that was prepared "
            "with the same tokenizer and seq_len"
        )


def _chosen(places: Sequence[_Place], data: TrainingData, description: str, *, rows: int) -> ProbeRows:
    read = list(_read(places, -(-rows // len(places))))
    columns = [column for _, _, column in read]
    tokens = np.stack([column["tokens"] for column in columns]).astype(np.int32)
    seq_len = tokens.shape[1] - 1

    def all_have(name: str) -> NDArray[Any] | None:
        return np.stack([column[name] for column in columns]) if all(name in column for column in columns) else None

    bits = all_have("selected")
    masks = [column.get("target_mask", np.ones(seq_len, np.uint8)) for column in columns]
    return ProbeRows(
        tokens=tokens,
        valid=valid_targets(tokens, data.eos_id, np.stack(masks)),
        domain=np.array([number for number, _, _ in read], np.int32),
        row=np.array([row for _, row, _ in read], np.int64),
        domains=tuple(place.name for place in places),
        eos_id=data.eos_id,
        description=description,
        ref_loss=all_have("ref_loss"),
        ref_entropy=all_have("ref_entropy"),
        selected=None if bits is None else unpack_mask(bits, seq_len),
    )


def _read(places: Sequence[_Place], rows: int) -> Iterator[tuple[int, int, dict[str, NDArray[Any]]]]:
    """The number of the domain, the number of the row and the columns of each probe row."""
    for number, place in enumerate(places):
        reader = place.source.reader(place.split, place.domain, checked=True)
        for row in spread_evenly(rows, len(reader)):
            yield number, row, reader[row]
