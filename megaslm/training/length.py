"""The length of a run: epochs become tokens once the data is known, and the plan and the end of the run are told."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from megaslm.config.plan import BatchPlan, total_steps
from megaslm.config.schema import RunConfig
from megaslm.errors import ConfigError
from megaslm.observe.display import counted

if TYPE_CHECKING:
    from megaslm.stream.mixture import Mixture


def with_total_tokens(config: RunConfig, rows: int) -> RunConfig:
    """The run with `train.total_tokens` in place of `train.epochs` of `rows` training rows: whole steps, rounded down.

    Raises ConfigError where they are less than one step, or the schedule does not fit into them.
    """
    epochs = config.train.epochs
    if epochs is None:
        return config
    batch_rows = config.train.global_batch_tokens // config.data.seq_len
    epoch_steps = rows // batch_rows
    steps = int(epochs * epoch_steps)
    if steps == 0:
        raise ConfigError(
            f"train.epochs = {epochs}: is less than one step; an epoch of {rows} training rows has {epoch_steps} steps "
            f"of {batch_rows} rows; {'raise it, ' if epoch_steps else ''}lower train.global_batch_tokens or prepare "
            "more text"
        )
    tokens = steps * config.train.global_batch_tokens
    train = config.train.model_copy(update={"total_tokens": tokens, "epochs": None})
    if (problem := train.schedule_problem()) is not None:
        raise ConfigError(f"train.epochs = {epochs}: is {tokens} tokens of this data; train: {problem}")
    return config.model_copy(update={"train": train})


def plan_lines(config: RunConfig, plan: BatchPlan, mixture: "Mixture", *, after_step: int) -> Iterator[str]:
    """The plan of the run, and what is to come after a step, for its user to read before the first step."""
    rows = plan.total_steps * plan.global_batch_rows
    epochs = rows / mixture.rows_per_epoch(plan.global_batch_rows)
    yield (
        f"plan: {plan.total_steps:,} steps of {plan.tokens_per_step:,} tokens = {rows * plan.seq_len:,} tokens: "
        f"{epochs:,.4g} {'epoch' if epochs == 1 else 'epochs'} of {mixture.rows:,} rows{_most_read(mixture, rows)}"
    )
    if (note := _lowered(config, plan)) is not None:
        yield f"plan: {note}"
    validations = 0
    if config.validation.sets:
        validations = plan.times_due(config.validation.every_tokens, after_step=after_step) + (after_step == 0)
    every_tokens, probes = config.probe.every_tokens, ""
    if every_tokens is not None:
        count = plan.times_due(every_tokens, after_step=after_step) + (after_step == 0)
        probes = f", {counted(count, 'measurement')} of {counted(config.probe.rows, 'probe row')}"
    saves = plan.times_due(config.checkpoint.every_tokens, after_step=after_step)
    yield (
        f"plan: {counted(plan.world_size, 'rank')} × {counted(plan.micro_batch_rows, 'row')} × "
        f"{counted(plan.micro_steps, 'micro-step')} per step; to come after step {after_step:,}: "
        f"{counted(saves, 'checkpoint')}, {counted(validations, 'validation')}{probes}"
    )


def end_line(config: RunConfig) -> str:
    """The last line of a finished run. Its length is in tokens."""
    run, steps = config.run_dir, total_steps(config)
    return (
        f"{Path(run).name} · finished: {steps:,} steps, {steps * config.train.global_batch_tokens:,} tokens; `megaslm "
        f"inspect {run}` shows the run, `megaslm export {run} OUTPUT` writes its model"
    )


def _lowered(config: RunConfig, plan: BatchPlan) -> str | None:
    """Why micro-batches have fewer rows than the configuration allows; None where they have as many."""
    asked, rows, used = config.train.micro_batch_rows, plan.rows_per_rank, plan.micro_batch_rows
    if used == asked:
        return None
    lowered = f"train.micro_batch_rows = {asked} is lowered to {used}, which divides a rank's rows per step ({rows})"
    return lowered if asked < rows else f"{lowered}; for larger micro-batches raise train.global_batch_tokens"


def _most_read(mixture: "Mixture", rows: int) -> str:
    """The domain whose rows are read most often, where weights or repeats make domains differ."""
    passes = {
        name: rows * stream.proportion / stream.rows
        for name, stream in zip(mixture.domains, mixture.streams, strict=True)
        if stream.proportion is not None
    }
    if not passes:
        return ""
    most, least = max(passes, key=passes.__getitem__), min(passes, key=passes.__getitem__)
    return f"; {most} is read {passes[most]:,.4g} times, {least} {passes[least]:,.4g} times"
