"""Whether the datasets of a run hold what it selects by: reference losses, or masks that were made of them."""

import torch

from megaslm.config.schema import RunConfig
from megaslm.training.mask_check import check_mask
from megaslm.training.reference_check import check_reference
from megaslm.training.training_data import TrainingData


def reads_reference(config: RunConfig) -> bool:
    """Whether the run selects by what a reference model says."""
    return config.train.objective == "slm" and (config.slm.needs_ref_loss or config.slm.needs_ref_entropy)


def check_scored(config: RunConfig, data: TrainingData, device: torch.device) -> None:
    """Checks what a run under `slm` selects by, on one rank, before the model takes its memory.

    Raises:
        DataError: it is not there, or is not what the run needs.
    """
    if not reads_reference(config):
        return
    for dataset in data.datasets:
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
                rows=config.slm.verify_rows,
                device=device,
            )
