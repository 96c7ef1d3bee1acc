"""Going back behind a loss spike: to the last checkpoint from before it, and on behind the data that was read since."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from megaslm.data.loading.order import Extent
from megaslm.engine.distributed import on_first_rank
from megaslm.errors import LossSpike
from megaslm.jobs.durable import write_file
from megaslm.training.checkpoints.progress import extents_from
from megaslm.training.checkpoints.resume import Resumed, resume
from megaslm.training.checkpoints.store import complete_checkpoints, remove_checkpoint
from megaslm.training.guard import Spike
from megaslm.training.job import Job

_MOST_FROM_ONE_CHECKPOINT = 3


@dataclass(frozen=True)
class RollBack:
    """What a run asks for that has met a spike."""

    spike: Spike
    step: int
    """Where the run stands, at or after the spike."""
    rows_seen: int
    """Where the data goes on."""
    extents: tuple[Extent, ...]
    """How many rows there are, from which epoch on."""


@dataclass(frozen=True)
class _Entry:
    """One roll-back of a run, in rollbacks.json; a run that is cut off before its next checkpoint needs it."""

    checkpoint_step: int
    rows_seen: int
    spike: str
    extents: tuple[Extent, ...] = ()


def roll_back(job: Job, asked: RollBack, say: Callable[[str], None]) -> Resumed:
    """Brings the run back to its newest whole checkpoint from before the spike; called on all ranks.

    Checkpoints from after the spike are removed, as those steps are made again, with other rows.

    Raises:
        LossSpike: there is no such checkpoint, or the run has come back to it too often.
    """
    on_first_rank(lambda: _forget_since(job.run.checkpoints, asked.spike))
    resumed = resume(job.run.checkpoints, job.engine.state(), job.world, say)
    entry = _Entry(resumed.progress.step, asked.rows_seen, str(asked.spike), asked.extents)
    on_first_rank(lambda: _note(_file(job), entry))
    say(
        f"warning: {asked.spike}; back from step {asked.step} to step {resumed.progress.step}, and on behind the "
        f"{asked.rows_seen - resumed.progress.rows_seen:,} rows that were read since"
    )
    return _behind(resumed, entry, validation_is_due=False)


def after_rollbacks(job: Job, resumed: Resumed) -> Resumed:
    """Where the data of a resumed run goes on, if it was cut off between a roll-back and the next checkpoint."""
    entries = on_first_rank(lambda: _read(_file(job)))
    here = [entry for entry in entries if entry.checkpoint_step == resumed.progress.step]
    if not here:
        return resumed
    last = max(here, key=lambda entry: entry.rows_seen)
    return _behind(resumed, last, validation_is_due=resumed.progress.validation_is_due)


def _behind(resumed: Resumed, entry: _Entry, *, validation_is_due: bool) -> Resumed:
    progress = replace(
        resumed.progress,
        rows_seen=entry.rows_seen,
        extents=entry.extents or resumed.progress.extents,
        validation_is_due=validation_is_due,
    )
    return replace(resumed, progress=progress)


def _file(job: Job) -> Path:
    return job.run.path / "rollbacks.json"


def _forget_since(checkpoints: Path, spike: Spike) -> None:
    found = complete_checkpoints(checkpoints)
    if not any(checkpoint.step < spike.step for checkpoint in found):
        raise LossSpike(
            f"{spike}; guard.on_spike = rollback: there is no checkpoint from before to go back to; lower train.lr or "
            "checkpoint.every_tokens"
        )
    for checkpoint in found:
        if checkpoint.step >= spike.step:
            remove_checkpoint(checkpoint.folder)


def _note(path: Path, entry: _Entry) -> None:
    entries = [*_read(path), entry]
    times = sum(earlier.checkpoint_step == entry.checkpoint_step for earlier in entries)
    if times > _MOST_FROM_ONE_CHECKPOINT:
        raise LossSpike(
            f"{entry.spike}; the run has gone back to step {entry.checkpoint_step} {times - 1} times already, and it "
            "is not the rows that make the loss rise: lower train.lr, or set guard.on_spike = warn"
        )
    write_file(path, json.dumps([asdict(one) for one in entries], indent=1) + "\n")


def _read(path: Path) -> list[_Entry]:
    if not path.is_file():
        return []
    stored = json.loads(path.read_text(encoding="utf-8"))
    return [_Entry(**{**entry, "extents": extents_from(entry.get("extents", []))}) for entry in stored]
