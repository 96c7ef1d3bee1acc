"""The progress of a run: all that a resume needs beside weights and moments."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megaslm.config.run_files import PROGRESS
from megaslm.errors import CheckpointError
from megaslm.slm.threshold import AT_START, SelectionState
from megaslm.stream.mixture import Mixture
from megaslm.stream.order import Extent

_BY_PASSES = 2


@dataclass(frozen=True)
class Progress:
    """The progress of a run after `step` optimiser steps."""

    step: int = 0
    rows_seen: int = 0
    """The data position: rows read by all ranks plus rows left out on purpose."""
    selected_tokens: int = 0
    """Targets trained on, over all ranks."""
    skipped_steps: int = 0
    """Steps whose loss or gradient was NaN or infinite."""
    skipped_in_a_row: int = 0
    """Skipped steps in a row at the end."""
    seconds: float = 0.0
    """Wall time of training, over all attempts that count."""
    rank_seconds: float = 0.0
    """`seconds` summed over ranks."""
    selection: SelectionState = AT_START
    """The objective's memory of earlier steps."""
    backward_cosine: float | None = None
    """Of a backward pass that leaves tokens out, see `FilterWatch`; None where none was compared."""
    rows_read: dict[str, int] = field(default_factory=dict)
    """Rows by domain, over all ranks."""
    recent_losses: tuple[float, ...] = ()
    """Losses of the last steps, in nats. A spike is judged by them."""
    validation_is_due: bool = False
    """Whether the run was told to stop before the validation of this step was finished."""
    extents: tuple[Extent, ...] = ()
    """The number of rows to read, from which epoch on; empty before the first step."""
    row_order: int = _BY_PASSES
    """The order of streams with a weight or repeat so far. 2: pass after pass. 1: each epoch was drawn anew."""

    def require_row_order(self, mixture: Mixture, checkpoints: Path) -> None:
        """Raise CheckpointError where the rows have been read in an order that this version does not have."""
        if self.row_order != _BY_PASSES and mixture.may_repeat_rows:
            raise CheckpointError(
                f"{checkpoints}: was written by a version that drew data.streams with weight or repeat anew each "
                "epoch; this version reads them pass after pass and cannot tell the position in these passes; start a "
                "new run from this one's model (`megaslm export`, then model.from_pretrained)"
            )

    def as_json(self) -> str:
        """The text that `read_progress` reads."""
        return json.dumps(asdict(self), indent=1) + "\n"


def read_progress(checkpoint: Path) -> Progress:
    """The progress stored in a checkpoint. Raises CheckpointError where the file cannot be read or is corrupt."""
    path = checkpoint / PROGRESS
    try:
        return _progress_from(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: is corrupt: {error!r}; restore it from a copy") from error


def _progress_from(stored: dict[str, Any]) -> Progress:
    # Checkpoints from before the second order was added do not name one.
    stored.setdefault("row_order", 1)
    selection = stored.pop("selection")
    # Version 0.1.0 wrote `cuts`.
    thresholds = selection.get("thresholds", selection.get("cuts"))
    stored["recent_losses"] = tuple(stored["recent_losses"])
    stored["extents"] = extents_from(stored.get("extents", []))
    return Progress(**stored, selection=SelectionState(tuple(thresholds), selection["surplus"]))


def extents_from(stored: list[list[Any]]) -> tuple[Extent, ...]:
    """Extents read back from JSON."""
    return tuple(
        Extent(first_epoch, tuple(rows), None if shares is None else tuple(shares))
        for first_epoch, rows, shares in stored
    )
