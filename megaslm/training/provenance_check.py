"""Whether what a dataset says of its reference is what the run needs: its rows, its contexts, its weights."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megaslm.data.dataset.manifest import Manifest, Reference
from megaslm.data.storage.dataset_folder import DatasetFolder
from megaslm.errors import ReferenceMismatch
from megaslm.model.weight_files import weights_sha256


@dataclass(frozen=True)
class NamedReference:
    """A reference model that is at hand."""

    setting: str
    """The key that names it."""
    folder: Path
    """Its Hugging Face folder."""


def spread_evenly(rows: int, of: int) -> list[int]:
    """The numbers of the rows to score again: so many `of` all, or all where there are no more."""
    return [int(number) for number in np.linspace(0, of, min(rows, of), endpoint=False)]


def check_provenance(
    found: Reference,
    manifest: Manifest,
    dataset: DatasetFolder,
    *,
    document_isolation: bool,
    reference: NamedReference | None,
) -> None:
    """Compares the record `found` in the manifest of `dataset` with its rows, with the run and with the model at hand.

    Raises:
        ReferenceMismatch: its losses were computed for other rows, in other contexts or by other weights.
    """
    if found.dataset_sha256 != manifest.tokens_fingerprint():
        raise ReferenceMismatch(
            f"{dataset.place}: its reference losses were computed for the rows {found.dataset_sha256[:12]}, it holds "
            f"the rows {manifest.tokens_fingerprint()[:12]}; score the dataset again"
        )
    if found.document_isolation != document_isolation:
        raise ReferenceMismatch(
            f"{dataset.place} was scored with document_isolation = {found.document_isolation}; the run has "
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
