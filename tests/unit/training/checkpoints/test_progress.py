"""The progress that a checkpoint stores, as written now and by earlier versions."""

import json
from dataclasses import replace
from pathlib import Path

from megaslm.config.run_files import PROGRESS
from megaslm.slm.threshold import SelectionState
from megaslm.training.checkpoints.progress import Progress, read_progress

STORED = Progress(step=3, rows_seen=24, selection=SelectionState((7, 3, 5), 0.1), recent_losses=(2.5, 2.25))


def test_what_is_stored_is_read(tmp_path: Path) -> None:
    (tmp_path / PROGRESS).write_text(STORED.as_json())
    assert read_progress(tmp_path) == STORED


def test_a_checkpoint_of_the_first_version_is_read(tmp_path: Path) -> None:
    """It has other names, no extents, and the order of rows before passes were counted."""
    stored = json.loads(STORED.as_json())
    stored["selection"] = {"cuts": stored["selection"].pop("thresholds"), "surplus": 0.1}
    del stored["extents"], stored["row_order"]
    (tmp_path / PROGRESS).write_text(json.dumps(stored))
    assert read_progress(tmp_path) == replace(STORED, row_order=1)
