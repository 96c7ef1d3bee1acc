"""Which rows a step of a run reads, told without running it."""

from dataclasses import dataclass
from pathlib import Path

from megaslm.config.load import load
from megaslm.config.plan import plan_batches
from megaslm.config.schema import RunConfig
from megaslm.data.dataset.shard_index import read_index
from megaslm.data.loading.mixture import order_of
from megaslm.errors import ConfigError
from megaslm.training.run_folder import CONFIG
from megaslm.training.training_data import open_training_data


@dataclass(frozen=True)
class StepRows:
    """The rows of one step, on any number of ranks."""

    step: int
    epoch: int
    """From 0 on."""
    rows: list[str]
    """DOMAIN:ROW of each."""


def rows_of_step(run: Path, step: int) -> StepRows:
    """The rows that a run reads in a step, unless it has left out rows before, as after a roll-back.

    `run` is a run's folder or its YAML file. Raises ConfigError where the run has no such step, and what opening its
    datasets raises.
    """
    config = load(RunConfig, run / CONFIG if run.is_dir() else run, []).value
    data = open_training_data(config)
    plan = plan_batches(config, world_size=1)
    if not 1 <= step <= plan.total_steps:
        raise ConfigError(f"--order {step}: {run} has steps 1 to {plan.total_steps}")
    streams = data.mixture.streams
    indices = [read_index(stream.local) for stream in streams]
    order = order_of(streams, indices, plan, seed=config.data.shuffle_seed)
    rows = [data.mixture.row_name(number) for number in order.of_step(step).tolist()]
    return StepRows(step, (step - 1) * plan.global_batch_rows // order.rows_per_epoch, rows)
