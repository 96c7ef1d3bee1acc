"""The dry run: a step, a validation and a save before training starts, so that lack of memory or disk shows at once."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice

import torch

from megaslm.config.retention import Retention
from megaslm.config.source import dump
from megaslm.engine.distributed import World, on_first_rank
from megaslm.engine.heartbeat import heartbeat
from megaslm.errors import ConfigError
from megaslm.files import UNFINISHED
from megaslm.observe.display import duration, gib
from megaslm.slm.rule import Moment
from megaslm.slm.threshold import AT_START
from megaslm.training.checkpoints.progress import Progress
from megaslm.training.checkpoints.saver import Saver
from megaslm.training.checkpoints.store import remove_folder, remove_unfinished
from megaslm.training.run import TrainingRun, objective_of
from megaslm.training.selection_rule import rule_of


def dry_run(run: TrainingRun, say: Callable[[str], None]) -> None:
    """Runs everything that takes memory, and one save. Weights, moments and folders are unchanged afterwards.

    Called on all ranks, before a checkpoint is read. Remains of an interrupted save are removed first.

    Raises:
        ConfigError: a rank ran out of memory; the message names the part.
        SaveFailed: a checkpoint cannot be written.
        Stopped: a rank was told to stop.
    """
    on_first_rank(lambda: remove_unfinished(run.folder.checkpoints))
    started = time.monotonic()
    for name, part in (("a step", _step), ("a validation", _validation), ("a save", _save)):
        run.stop.raise_if_told_anywhere(run.cpu_group, f"it was in its dry run: {run.how_to_start_again()}")
        heartbeat("start", 0)
        with lack_of_memory_named(f"guard.dry_run: {name}", run.world):
            part(run)
    run.engine.state().forget_moments()
    peak = ""
    if run.world.device.type == "cuda":
        peak_gib = gib(torch.cuda.max_memory_allocated(run.world.device), 1)
        peak = f"; at most {peak_gib} GiB of GPU memory on the first rank"
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(run.world.device)
    say(f"dry run of a step, a validation and a save in {duration(time.monotonic() - started)}{peak}")


@contextmanager
def lack_of_memory_named(part: str, world: World) -> Iterator[None]:
    """Within the context, a GPU's lack of memory is a ConfigError that names the part of the run and the rank."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"{part} does not fit into the memory of rank {world.rank}: {error}; lower train.micro_batch_rows or "
            "validation.batch_rows, set model.recompute to selective or full, or use more ranks"
        ) from error


def _step(run: TrainingRun) -> None:
    """At learning rate 0, with rows of the first step, at the largest and at the smallest keep ratio of the run."""
    domains = run.data.mixture.domains
    for tokens in sorted(set(rule_of(run.config, domains).keep_ratio.extremes)):
        with closing(run.stream.micro_batches(0)) as stream:
            micro_batches = [rows.to(run.world.device) for rows in islice(stream, run.plan.micro_steps)]
        run.train_step(objective_of(run.config, domains, AT_START))(micro_batches, Moment(1, tokens), learning_rate=0.0)


def _validation(run: TrainingRun) -> None:
    def is_to_stop() -> bool:
        heartbeat("start", 0)
        return run.cpu_group.any(run.stop.told)

    run.validation.run(run.engine, step=0, tokens=0, is_to_stop=is_to_stop)


def _save(run: TrainingRun) -> None:
    # The next start recognises this name as the remains of a save.
    folder = run.folder.checkpoints / f"{UNFINISHED}step-dry-run"
    saver = Saver(
        folder,
        run.engine.state(),
        dump(run.config),
        run.world,
        run.cpu_group,
        retention=Retention(1, None),
        max_failed=1,
        corrupt=(),
        say=lambda line: None,
        on_saved=lambda progress: None,
        how_to_start_again=run.how_to_start_again,
    )
    try:
        saver.begin(Progress())
        saver.wait(may_fail=False)
    finally:
        if run.world.is_first:
            remove_folder(folder)
