"""The choice that a mask stores: the selection of a run with a static criterion and scope `sequence`."""

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from megaslm.dataset.fit import require_losses_to_mask
from megaslm.dataset.manifest import Manifest, Mask
from megaslm.dataset.remote import DatasetFolder
from megaslm.dataset.rows import Rows
from megaslm.errors import ConfigError, DataError
from megaslm.slm.keys import target_keys
from megaslm.slm.selection import select_static
from megaslm.slm.targets import Targets
from megaslm.slm.valid_targets import valid_targets


def mask_rule(criterion: str, keep_ratio: str, max_ref_loss: float | None) -> Mask:
    """The rule of the command line. The ratio is kept as written. Raises ConfigError for an invalid value."""
    try:
        return Mask.model_validate({"criterion": criterion, "keep_ratio": keep_ratio, "max_ref_loss": max_ref_loss})
    except ValidationError as error:
        wrong = {str(problem["loc"][0]) for problem in error.errors()}
        expected = {
            "criterion": f"--criterion {criterion}: must be reference, entropy or reference_and_entropy",
            "keep_ratio": f"--keep-ratio {keep_ratio}: must be above 0 and at most 1, with at most nine decimal places",
            "max_ref_loss": f"--max-ref-loss {max_ref_loss}: must be a number of nats above 0",
        }
        raise ConfigError("\n".join(message for name, message in expected.items() if name in wrong)) from error


def describe_masked(manifest: Manifest, dataset: DatasetFolder, rule: Mask) -> Manifest:
    """The manifest of the masked `dataset`, but with the parts of its present manifest `manifest`.

    Raises DataError where the dataset lacks the column that the rule sorts by.
    """
    require_losses_to_mask(manifest, dataset.place, rule.criterion)
    return manifest.model_copy(update={"kind": "masked", "mask": rule})


def selected_targets(rule: Mask, rows: Rows, eos_id: int) -> NDArray[np.bool_]:
    """The targets that the rule selects in n scored rows: (n, L) bool. Each row is sorted on its own.

    Raises DataError where a target cannot be sorted because its reference loss or entropy is non-finite.
    """
    tokens = torch.from_numpy(rows["tokens"].astype(np.int64))
    targets = Targets(
        valid=valid_targets(tokens, eos_id, _target_mask(rows)),
        keys=target_keys(torch.arange(len(tokens)), 0, tokens.shape[1] - 1),
        columns={
            name: torch.from_numpy(rows[name].astype(np.float32))
            for name in ("ref_loss", "ref_entropy")
            if name in rows
        },
    )
    selection = select_static(rule.criterion, targets, rule.keep_ratio, rule.max_ref_loss)
    if selection.unsortable.any():
        row = int(selection.unsortable.any(1).nonzero()[0])
        raise DataError(f"row {row} has a ref_loss or ref_entropy that is NaN or infinite; score the dataset again")
    mask: NDArray[np.bool_] = selection.mask.numpy()
    return mask


def _target_mask(rows: Rows) -> torch.Tensor | None:
    return torch.from_numpy(rows["target_mask"]) if "target_mask" in rows else None
