"""The rows that a step of a run reads, found without running the step."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from megaslm.config.load import load
from megaslm.config.plan import plan_batches
from megaslm.config.run_files import CONFIG
from megaslm.config.schema import RunConfig
from megaslm.dataset.index import read_index
from megaslm.errors import ConfigError
from megaslm.stream.order import extent_of, lengthened, order_of
from megaslm.training.checkpoints.progress import Progress, read_progress
from megaslm.training.checkpoints.rollbacks import (
    ROLL_BACKS,
    NotedRollBack,
    read_roll_backs,
    rows_seen_before,
    since_roll_backs,
)
from megaslm.training.checkpoints.store import complete_checkpoints
from megaslm.training.length import with_total_tokens
from megaslm.training.run_folder import RunFolder
from megaslm.training.training_data import open_training_data


@dataclass(frozen=True)
class StepRows:
    """The rows of one step, on any number of ranks."""

    step: int
    epoch: int
    """Counted from 0."""
    rows: list[str]
    """DOMAIN:ROW of each."""


def rows_of_step(run: Path, step: int) -> StepRows:
    """The rows that a run reads in a step, or would read if it continued without another roll-back.

    `run` is a run's folder or its YAML file. A YAML file tells of a run from its first step on, without roll-backs.
    Raises ConfigError where the run has no such step, or its folder does not tell which rows were skipped;
    CheckpointError where it has read rows in another order; and the errors of opening its datasets.
    """
    config = load(RunConfig, run / CONFIG if run.is_dir() else run, []).value
    data = open_training_data(config)
    plan = plan_batches(with_total_tokens(config, data.mixture.rows), world_size=1)
    if not 1 <= step <= plan.total_steps:
        raise ConfigError(f"--order {step}: {run} has steps 1 to {plan.total_steps}")
    streams = data.mixture.streams
    indices = [read_index(stream.local) for stream in streams]
    so_far, noted = _history(run, plan.global_batch_rows)
    so_far.require_row_order(data.mixture, RunFolder(run).checkpoints)
    order = partial(order_of, streams, indices, plan, config.data.shuffle_seed)
    found = order(lengthened(so_far.extents, extent_of(streams), so_far.rows_seen, order))
    rows_seen = rows_seen_before(step, noted, plan.global_batch_rows)
    rows = [data.mixture.row_name(number) for number in found.step_after(rows_seen).tolist()]
    epoch, _ = found.place_of(rows_seen)
    return StepRows(step, epoch, rows)


def _history(run: Path, batch_rows: int) -> tuple[Progress, list[NotedRollBack]]:
    """The progress of a run, and its roll-backs. Raises ConfigError where the two do not agree."""
    if not run.is_dir():
        return Progress(), []
    noted, found = read_roll_backs(run), complete_checkpoints(RunFolder(run).checkpoints)
    if not found:
        return Progress(), noted
    newest = found[-1].folder
    so_far = since_roll_backs(read_progress(newest), noted)
    expected = rows_seen_before(so_far.step + 1, noted, batch_rows)
    if so_far.rows_seen != expected:
        raise ConfigError(
            f"--order: {newest} is {so_far.rows_seen:,} rows into the run's order; {run / ROLL_BACKS} accounts for "
            f"{expected:,}, so the rows of a step cannot be told; restore {ROLL_BACKS} from a copy"
        )
    return so_far, noted
