"""Whether the mask of a dataset selects what the run would select, and is made of what the reference says."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from megaslm.config.schema import SlmSection
from megaslm.data.dataset.manifest import Manifest, Mask
from megaslm.data.dataset.target_bits import unpack_mask
from megaslm.data.storage.dataset_folder import DatasetFolder
from megaslm.errors import DataError, ReferenceMismatch
from megaslm.model.reference_model import ReferenceModel, as_stored
from megaslm.slm.keys import target_keys
from megaslm.slm.static import select_static
from megaslm.slm.targets import Targets
from megaslm.slm.valid_targets import valid_targets
from megaslm.training.provenance_check import NamedReference, check_provenance, spread_evenly

# Of those selected or, where they are fewer, of those not. Other arithmetic moves a few targets over the cut; after a
# shift by one, or with other weights, about as many differ as are selected.
_MOST_DIFFERENT = 0.25


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
    """Checks the rule of a mask, and where the reference is at hand makes the mask of `run.verify_rows` rows again.

    Args:
        manifest: of `dataset`.
        mask: of `manifest`.
        dataset: a masked dataset.
        run: the rule of the run that is to use the mask.
        domains: those that the run trains on.
        document_isolation: of the run.
        reference: the model that scored the dataset that the mask was made of, or None.
        device: where to score.

    Raises:
        DataError: the run selects otherwise.
        ReferenceMismatch: the mask was made of losses in other contexts, of other tokens or by others.
    """
    _check_rule(mask, dataset, run)
    found = manifest.reference
    if found is None:
        raise ReferenceMismatch(f"{dataset.place}: its manifest names no reference; mask the scored dataset again")
    check_provenance(found, manifest, dataset, document_isolation=document_isolation, reference=reference)
    if reference is not None and run.verify_rows:
        model = ReferenceModel.load(reference.folder, found, eos_id=manifest.eos_id, device=device)
        for domain in domains:
            _check_mask_rows(model, mask, dataset, domain, run.verify_rows, manifest.eos_id)


def _check_rule(mask: Mask, dataset: DatasetFolder, run: SlmSection) -> None:
    settings = {
        "score": (mask.score, run.score),
        "scope": (mask.scope, run.scope),
        "keep_ratio": (mask.keep_ratio, run.keep_ratio),
        "keep_ratio_warmup_tokens": (0, run.keep_ratio_warmup_tokens),
        "max_ref_loss": (mask.max_ref_loss, run.max_ref_loss),
    }
    different = {name: values for name, values in settings.items() if values[0] != values[1]}
    if different:
        of_mask, of_run = (
            ", ".join(f"slm.{name} = {values[side]}" for name, values in different.items()) for side in (0, 1)
        )
        raise DataError(
            f"{dataset.place} is masked for {of_mask}; the run has {of_run}: change the run, make another mask with "
            "`megaslm mask`, or train on the scored dataset"
        )


def _check_mask_rows(
    model: ReferenceModel, mask: Mask, dataset: DatasetFolder, domain: str, rows: int, eos_id: int
) -> None:
    compared = list(_compared(model, mask, dataset, domain, rows, eos_id))
    different, selected, targets = (sum(counts) for counts in zip(*compared, strict=True))
    if different > _MOST_DIFFERENT * min(selected, targets - selected):
        raise ReferenceMismatch(
            f"{dataset.place}, train/{domain}: {different:,} of {targets:,} targets of the rows that were scored again "
            "are masked otherwise than the reference's losses ask for; score and mask the dataset again"
        )


def _compared(
    model: ReferenceModel, mask: Mask, dataset: DatasetFolder, domain: str, rows: int, eos_id: int
) -> Iterator[tuple[int, int, int]]:
    """Of each of some rows: how many targets the mask, made again, chooses otherwise; how many it selects; all."""
    reader = dataset.reader("train", domain)
    for number in spread_evenly(rows, len(reader)):
        row = reader.rows(number, number + 1)
        tokens = torch.from_numpy(row["tokens"].astype(np.int64)).to(model.device)
        seq_len = tokens.shape[1] - 1
        losses, entropies = model.measure(tokens)
        valid = valid_targets(tokens, eos_id)
        targets = Targets(
            valid=valid,
            keys=target_keys(torch.zeros(1, dtype=torch.int64, device=model.device), 0, seq_len),
            ref_loss=as_stored(losses, valid).float(),
            ref_entropy=None if entropies is None else as_stored(entropies, valid).float(),
        )
        again = select_static(mask.score, targets, mask.keep_ratio, mask.max_ref_loss).mask.cpu()
        stored = torch.from_numpy(unpack_mask(row["selected"].astype(np.uint8), seq_len))
        yield int((again != stored).sum()), int(again.sum()), int(valid.sum())
