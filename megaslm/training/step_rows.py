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
from megaslm.stream.mixture import extent_of, lengthened, order_of
from megaslm.training.checkpoints.progress import Progress, read_progress
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
    """The rows that a run reads in a step. They are wrong if the run has skipped rows before, as after a roll-back.

    `run` is a run's folder or its YAML file. Raises ConfigError where the run has no such step, and the errors of
    opening its datasets.
    """
    config = load(RunConfig, run / CONFIG if run.is_dir() else run, []).value
    data = open_training_data(config)
    plan = plan_batches(with_total_tokens(config, data.mixture.rows), world_size=1)
    if not 1 <= step <= plan.total_steps:
        raise ConfigError(f"--order {step}: {run} has steps 1 to {plan.total_steps}")
    streams = data.mixture.streams
    indices = [read_index(stream.local) for stream in streams]
    so_far = _progress(run)

    order = partial(order_of, streams, indices, plan, config.data.shuffle_seed)
    found = order(lengthened(so_far.extents, extent_of(streams), so_far.rows_seen, order))
    rows = [data.mixture.row_name(number) for number in found.of_step(step).tolist()]
    epoch, _ = found.place_of((step - 1) * plan.global_batch_rows)
    return StepRows(step, epoch, rows)


def _progress(run: Path) -> Progress:
    found = complete_checkpoints(RunFolder(run).checkpoints) if run.is_dir() else []
    return read_progress(found[-1].folder) if found else Progress()
