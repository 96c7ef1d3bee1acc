"""Where a run stands: all that goes on from a checkpoint beside weights and moments."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megaslm.errors import CheckpointError
from megaslm.slm.threshold import AT_START, SelectionState
from megaslm.stream.order import Extent

PROGRESS = "progress.json"
BY_PASSES = 2
"""The order in which streams with a weight or repeat are read: pass after pass. 1: each epoch was drawn anew."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands after `step` optimiser steps."""

    step: int = 0
    rows_seen: int = 0
    """Where the data goes on: rows read by all ranks, and rows that were left out on purpose."""
    selected_tokens: int = 0
    """Targets trained on, over all ranks."""
    skipped_steps: int = 0
    """Steps whose loss or gradient was NaN or infinite."""
    skipped_in_a_row: int = 0
    """How many of them were the last."""
    seconds: float = 0.0
    """Wall time of training, over all attempts that count."""
    rank_seconds: float = 0.0
    """The same, times the ranks that there were."""
    selection: SelectionState = AT_START
    """What the objective remembers of the steps before."""
    rows_read: dict[str, int] = field(default_factory=dict)
    """Of each domain, over all ranks."""
    recent_losses: tuple[float, ...] = ()
    """Of the last steps, in nats: by these a spike is judged."""
    validation_is_due: bool = False
    """Whether the run was told to stop before the validation of this step was through."""
    extents: tuple[Extent, ...] = ()
    """How many rows there were to read, from which epoch on; none before the first step."""
    row_order: int = BY_PASSES
    """The order in which rows were read until here."""

    def as_json(self) -> str:
        """What `read_progress` reads."""
        return json.dumps(asdict(self), indent=1) + "\n"


def read_progress(checkpoint: Path) -> Progress:
    """Where the run stood when the checkpoint was written. Raises CheckpointError where the file does not say so."""
    path = checkpoint / PROGRESS
    try:
        return _progress_from(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: is not as it was written: {error!r}; restore it from a copy") from error


def _progress_from(stored: dict[str, Any]) -> Progress:
    # Checkpoints from before there was a second order say nothing of it.
    stored.setdefault("row_order", 1)
    selection = stored.pop("selection")
    # Version 0.1.0 wrote `cuts`.
    thresholds = selection.get("thresholds", selection.get("cuts"))
    stored["recent_losses"] = tuple(stored["recent_losses"])
    stored["extents"] = extents_from(stored.get("extents", []))
    return Progress(**stored, selection=SelectionState(tuple(thresholds), selection["surplus"]))


def extents_from(stored: list[list[Any]]) -> tuple[Extent, ...]:
    """Extents as they were before they were written as JSON."""
    return tuple(
        Extent(first_epoch, tuple(rows), None if shares is None else tuple(shares))
        for first_epoch, rows, shares in stored
    )
