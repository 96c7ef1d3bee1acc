"""The roll-backs of a run, in rollbacks.json: the checkpoints that it went back to, and the rows that it skipped."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from megaslm.errors import CheckpointError
from megaslm.files import write_file
from megaslm.stream.order import Extent
from megaslm.training.checkpoints.progress import Progress, extents_from

ROLL_BACKS = "rollbacks.json"


@dataclass(frozen=True)
class NotedRollBack:
    """One roll-back. A run that is interrupted before its next checkpoint needs it."""

    checkpoint_step: int
    """The step of the checkpoint."""
    rows_seen: int
    """The data position after the roll-back."""
    spike: str
    """Its reason."""
    extents: tuple[Extent, ...] = ()
    """As `Progress.extents`; empty in files of earlier builds."""

    def applied_to(self, progress: Progress) -> Progress:
        """The progress of the checkpoint, with the data position after the roll-back."""
        return replace(progress, rows_seen=self.rows_seen, extents=self.extents or progress.extents)


def read_roll_backs(run: Path) -> list[NotedRollBack]:
    """The roll-backs of the run in this folder, oldest first. Raises CheckpointError where the file is corrupt."""
    path = run / ROLL_BACKS
    if not path.is_file():
        return []
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return [NotedRollBack(**{**each, "extents": extents_from(each.get("extents", []))}) for each in stored]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: is corrupt: {error!r}; restore it from a copy") from error


def write_roll_backs(run: Path, noted: Sequence[NotedRollBack]) -> None:
    """Writes what `read_roll_backs` reads."""
    write_file(run / ROLL_BACKS, json.dumps([asdict(each) for each in noted], indent=1) + "\n")


def since_roll_backs(progress: Progress, noted: Sequence[NotedRollBack]) -> Progress:
    """A checkpoint's progress, with the data position after the last roll-back to this checkpoint, if any."""
    # A roll-back moves the position forward. One that would not belongs to an earlier checkpoint of this step.
    here = [each for each in noted if each.checkpoint_step == progress.step and each.rows_seen > progress.rows_seen]
    return here[-1].applied_to(progress) if here else progress


def rows_seen_before(step: int, noted: Sequence[NotedRollBack], batch_rows: int) -> int:
    """The data position of a run when it starts `step`, counted from 1, where no row was skipped but by roll-backs.

    `batch_rows`: rows of one step, over all ranks.
    """
    # A later roll-back to an earlier checkpoint replaces the steps of those before it.
    last = next((each for each in reversed(noted) if each.checkpoint_step < step), None)
    first_step, rows_seen = (0, 0) if last is None else (last.checkpoint_step, last.rows_seen)
    return rows_seen + (step - 1 - first_step) * batch_rows
