"""Where a run stands: all that goes on from a checkpoint beside weights and moments."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from megaslm.slm.recent_cuts import AT_START, SelectionState

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
    row_order: int = BY_PASSES
    """The order in which rows were read until here."""

    def as_json(self) -> str:
        """What `read_progress` reads."""
        return json.dumps(asdict(self), indent=1) + "\n"


def read_progress(checkpoint: Path) -> Progress:
    """Where the run stood when the checkpoint was written."""
    stored = json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))
    # Checkpoints from before there was a second order say nothing of it.
    stored.setdefault("row_order", 1)
    selection = stored.pop("selection")
    stored["recent_losses"] = tuple(stored["recent_losses"])
    return Progress(**stored, selection=SelectionState(tuple(selection["cuts"]), selection["surplus"]))
