"""Checks that the datasets of a run hold the reference losses, or the masks made of them, that the run selects by.

A few rows are scored again, because hashes cannot reveal a mistake of the scorer itself.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from megaslm.config.schema import RunConfig
from megaslm.config.selection import SlmSection
from megaslm.dataset.fit import (
    losses_read,
    reads_reference,
    require_reference,
    require_rule,
    require_selected,
    selects_by_column,
)
from megaslm.dataset.manifest import TOKENIZER, Manifest, Mask, Reference
from megaslm.dataset.remote import DatasetFolder
from megaslm.dataset.rows import Rows, unpack_mask
from megaslm.errors import ReferenceMismatch
from megaslm.model.aligned_reference import AlignedReference
from megaslm.model.reference_model import ReferenceModel, as_stored
from megaslm.slm.keys import target_keys
from megaslm.slm.selection import select_static
from megaslm.slm.targets import Targets
from megaslm.slm.valid_targets import valid_targets
from megaslm.training.training_data import NamedReference, TrainingData, check_provenance, spread_evenly

# How far the same arithmetic on another device may move a loss. A shift by one, or another packing, moves most losses
# by whole nats. Computing in bf16 where fp32 is stated moves them by hundredths.
_TOLERANCE_NATS = {"fp32": 0.0002, "bf16": 0.2}
# Losses are stored with 11 significant bits.
_STORAGE_ROUNDING = 2.0**-10
_MOST_OUTSIDE = 0.02
# Share of the selected targets or of the others, whichever are fewer. Other arithmetic moves a few targets across the
# threshold. After a shift by one, or with other weights, about as many differ as are selected.
_MOST_DIFFERENT = 0.25


def check_reference(
    manifest: Manifest,
    dataset: DatasetFolder,
    *,
    domains: Sequence[str],
    document_isolation: bool,
    needs_entropy: bool,
    reference: NamedReference | None,
    rows: int,
    device: torch.device,
) -> None:
    """Checks a dataset's record of its reference. If the model is given, scores a few training rows again.

    Args:
        manifest: of `dataset`.
        dataset: a scored dataset.
        domains: those that the run trains on.
        document_isolation: of the run that uses the losses.
        needs_entropy: whether the run sorts by the entropy of the reference's predictions.
        reference: the model, or None.
        rows: how many rows of each domain to score again, evenly spread; 0 for none.
        device: where to score.

    Raises:
        DataError: the dataset is not scored, or has no entropies.
        ReferenceMismatch: the losses were computed with another document_isolation, on other tokens or with other
            weights.
    """
    found = require_reference(manifest, dataset.place, needs_entropy=needs_entropy)
    check_provenance(found, manifest, dataset, document_isolation=document_isolation, reference=reference)
    if reference is not None and rows:
        measure = _measure_of(reference.folder, manifest, dataset, found, device)
        for domain in domains:
            _check_loss_rows(measure, found, dataset, domain, rows, manifest.eos_id)


MeasureRow = Callable[[str, int, torch.Tensor], Sequence[torch.Tensor]]
"""Measures a row of a domain, by its number and (1, L+1) tokens: its losses and any entropies, (L,) float32 each."""


def _measure_of(
    folder: Path, manifest: Manifest, dataset: DatasetFolder, found: Reference, device: torch.device
) -> MeasureRow:
    if not found.aligned:
        model = ReferenceModel.load(folder, found, eos_id=manifest.eos_id, device=device)

        def measure(_domain: str, _number: int, tokens: torch.Tensor) -> list[torch.Tensor]:
            return [column[0].cpu() for column in model.measure(tokens).columns]

        return measure
    aligned = AlignedReference.load(folder, manifest, found, tokenizer=dataset.path / TOKENIZER, device=device)

    def measure_aligned(domain: str, number: int, _tokens: torch.Tensor) -> list[torch.Tensor]:
        part, row = _part_with(manifest, domain, number)
        reader = dataset.reader("train", domain, part)
        [measured] = aligned.measure(reader, range(row, row + 1), f"{dataset.place}, train/{domain}/{part}")
        return list(torch.from_numpy(measured.values)[:, 0])

    return measure_aligned


def _part_with(manifest: Manifest, domain: str, number: int) -> tuple[str, int]:
    """The part that holds a row of a domain, and the row's number in it. No document crosses the end of a part."""
    for part in manifest.splits["train"][domain].parts:
        if number < part.rows:
            return part.name, number
        number -= part.rows
    raise IndexError(f"train/{domain} has no row {number} beyond its parts")


def _check_loss_rows(
    measure: MeasureRow, found: Reference, dataset: DatasetFolder, domain: str, rows: int, eos_id: int
) -> None:
    reader = dataset.reader("train", domain)
    where = f"{dataset.place}, train/{domain}, row"
    for number in spread_evenly(rows, len(reader)):
        row = reader[number]
        tokens = torch.from_numpy(row["tokens"].astype(np.int64))[None]
        valid = valid_targets(tokens, eos_id, _target_mask(row, tokens))[0]
        for column, again in zip(("ref_loss", "ref_entropy"), measure(domain, number, tokens), strict=False):
            stored = torch.from_numpy(row[column].astype(np.float32))[valid]
            _check_column(stored, again[valid], found.precision, f"{where} {number}", column)


def _check_column(stored: torch.Tensor, again: torch.Tensor, precision: str, where: str, column: str) -> None:
    difference = (stored - again).abs()
    tolerance = _TOLERANCE_NATS[precision] + _STORAGE_ROUNDING * stored.maximum(again)
    outside = (difference > tolerance).float().mean().item() if len(stored) else 0.0
    if outside > _MOST_OUTSIDE:
        raise ReferenceMismatch(
            f"{where}: {outside:.0%} of its stored {column} differ from what the reference gives in {precision}, by "
            f"{difference.median():.3g} nats in the median (mean stored {stored.mean():.4f}, computed "
            f"{again.mean():.4f}); score the dataset again"
        )


def check_mask(
    manifest: Manifest,
    mask: Mask,
    dataset: DatasetFolder,
    run: SlmSection,
    *,
    domains: Sequence[str],
    document_isolation: bool,
    reference: NamedReference | None,
    device: torch.device,
) -> None:
    """Checks the rule of a mask. If the reference is given, makes the mask of `run.verify_rows` rows again.

    Args:
        manifest: of `dataset`.
        mask: of `manifest`.
        dataset: a masked dataset.
        run: the rule of the run that uses the mask.
        domains: those that the run trains on.
        document_isolation: of the run.
        reference: the model that scored the dataset before it was masked, or None.
        device: where to score.

    Raises:
        DataError: the run has another selection rule.
        ReferenceMismatch: the mask comes from losses with another document_isolation, of other tokens or with other
            weights.
    """
    require_rule(mask, dataset.place, run)
    found = manifest.reference
    if found is None:
        raise ReferenceMismatch(f"{dataset.place}: its manifest names no reference; mask the scored dataset again")
    check_provenance(found, manifest, dataset, document_isolation=document_isolation, reference=reference)
    if reference is not None and run.verify_rows:
        measure = _measure_of(reference.folder, manifest, dataset, found, device)
        for domain in domains:
            _check_mask_rows(measure, mask, dataset, domain, run.verify_rows, manifest.eos_id)


def _check_mask_rows(
    measure: MeasureRow, mask: Mask, dataset: DatasetFolder, domain: str, rows: int, eos_id: int
) -> None:
    compared = list(_compared(measure, mask, dataset, domain, rows, eos_id))
    different, selected, targets = (sum(counts) for counts in zip(*compared, strict=True))
    if different > _MOST_DIFFERENT * min(selected, targets - selected):
        raise ReferenceMismatch(
            f"{dataset.place}, train/{domain}: {different:,} of {targets:,} targets of the rows that were scored again "
            "are masked differently than the reference's losses require; score and mask the dataset again"
        )


def _compared(
    measure: MeasureRow, mask: Mask, dataset: DatasetFolder, domain: str, rows: int, eos_id: int
) -> Iterator[tuple[int, int, int]]:
    """For each of `rows` rows: targets whose new mask differs from the stored one, targets selected, all targets."""
    reader = dataset.reader("train", domain)
    for number in spread_evenly(rows, len(reader)):
        row = reader.rows(number, number + 1)
        tokens = torch.from_numpy(row["tokens"].astype(np.int64))
        seq_len = tokens.shape[1] - 1
        losses, *entropies = measure(domain, number, tokens)
        valid = valid_targets(tokens, eos_id, _target_mask(row, tokens))
        targets = Targets(
            valid=valid,
            keys=target_keys(torch.zeros(1, dtype=torch.int64), 0, seq_len),
            columns={
                name: as_stored(column[None], valid).float()
                for name, column in zip(("ref_loss", "ref_entropy"), (losses, *entropies), strict=False)
            },
        )
        again = select_static(mask.criterion, targets, mask.keep_ratio, mask.max_ref_loss).mask
        stored = torch.from_numpy(unpack_mask(row["selected"].astype(np.uint8), seq_len))
        yield int((again != stored).sum()), int(again.sum()), int(valid.sum())


def _target_mask(row: Rows, tokens: torch.Tensor) -> torch.Tensor | None:
    """The target mask of a row, or of rows, on the device of its `tokens`."""
    return torch.from_numpy(row["target_mask"]).to(tokens.device) if "target_mask" in row else None


def check_scored(config: RunConfig, data: TrainingData, device: torch.device) -> list[str]:
    """Checks the references and masks of a run under `slm`, on one rank, before the model takes its memory.

    Returns a line for each dataset whose reference was at hand, so that rows were compared with it.

    Raises DataError where they are missing or do not fit the run.
    """
    if selects_by_column(config):
        for dataset in data.datasets:
            require_selected(dataset.manifest, dataset.source.place)
    for dataset in data.datasets:
        for column, found in losses_read(config, dataset.manifest):
            check_provenance(
                found,
                dataset.manifest,
                dataset.source,
                document_isolation=config.model.document_isolation,
                reference=None,
                column=column,
            )
    if not reads_reference(config):
        return []
    rows, verified = config.slm.verify_rows, []
    for dataset in data.datasets:
        if dataset.reference is not None and rows:
            verified.append(
                f"slm.verify_rows: {rows} rows of each domain of {dataset.source.place} were scored again by "
                f"{dataset.reference.folder}, and agree with what is stored"
            )
        mask = dataset.manifest.mask
        if mask is not None:
            check_mask(
                dataset.manifest,
                mask,
                dataset.source,
                config.slm,
                domains=dataset.domains,
                document_isolation=config.model.document_isolation,
                reference=dataset.reference,
                device=device,
            )
        else:
            check_reference(
                dataset.manifest,
                dataset.source,
                domains=dataset.domains,
                document_isolation=config.model.document_isolation,
                needs_entropy=config.slm.needs_ref_entropy,
                reference=dataset.reference,
                rows=rows,
                device=device,
            )
    return verified
