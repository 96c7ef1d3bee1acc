"""Whether stored reference losses are those of the reference: hashes cannot see a scorer's own mistake."""

from collections.abc import Sequence

import numpy as np
import torch

from megaslm.data.dataset.manifest import Manifest, Reference
from megaslm.data.storage.dataset_folder import DatasetFolder
from megaslm.errors import DataError, ReferenceMismatch
from megaslm.model.reference_model import ReferenceModel
from megaslm.slm.valid_targets import valid_targets
from megaslm.training.provenance_check import NamedReference, check_provenance, spread_evenly

# What the same arithmetic on another device may move a loss by. A shift by one, or another packing, moves most of them
# by whole nats; bf16 where fp32 is stated, by hundredths.
_TOLERANCE_NATS = {"fp32": 0.0002, "bf16": 0.2}
# Losses are stored with 11 significant bits.
_STORAGE_ROUNDING = 2.0**-10
_MOST_OUTSIDE = 0.02


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
    """Checks what a dataset says of its reference, and where the model is at hand scores a few training rows again.

    Args:
        manifest: of `dataset`.
        dataset: a scored dataset.
        domains: those that the run trains on.
        document_isolation: of the run that is to use the losses.
        needs_entropy: whether the run ranks by the entropy of the reference's predictions.
        reference: the model, or None.
        rows: how many rows of each domain to score again, evenly spread; 0 for none.
        device: where to score.

    Raises:
        DataError: the dataset is not scored, or has no entropies.
        ReferenceMismatch: it was scored otherwise than the run computes its losses, on other tokens or by others.
    """
    found = manifest.reference
    if manifest.kind != "scored" or found is None:
        raise DataError(
            f"{dataset.place} holds no ref_loss (kind {manifest.kind!r}); run `megaslm score` on it for "
            "train.objective slm"
        )
    if needs_entropy and not found.entropy:
        raise DataError(
            f"{dataset.place} holds no ref_entropy, which slm.score needs; run `megaslm score --entropy` into another "
            "folder"
        )
    check_provenance(found, manifest, dataset, document_isolation=document_isolation, reference=reference)
    if reference is not None and rows:
        model = ReferenceModel.load(reference.folder, found, eos_id=manifest.eos_id, device=device)
        for domain in domains:
            _check_loss_rows(model, found, dataset, domain, rows, manifest.eos_id)


def _check_loss_rows(
    model: ReferenceModel, found: Reference, dataset: DatasetFolder, domain: str, rows: int, eos_id: int
) -> None:
    reader = dataset.reader("train", domain)
    where = f"{dataset.place}, train/{domain}, row"
    for number in spread_evenly(rows, len(reader)):
        row = reader[number]
        tokens = torch.from_numpy(row["tokens"].astype(np.int64))[None].to(model.device)
        valid = valid_targets(tokens, eos_id)[0].cpu()
        losses, entropies = model.measure(tokens)
        for column, again in (("ref_loss", losses), ("ref_entropy", entropies)):
            if again is not None:
                stored = torch.from_numpy(row[column].astype(np.float32))[valid]
                _check_column(stored, again[0].cpu()[valid], found.precision, f"{where} {number}", column)


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
