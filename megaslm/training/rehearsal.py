"""A step, a validation and a save before training starts: what they do not find room for is told then."""

import time
from collections.abc import Callable
from contextlib import closing
from itertools import islice

import torch

from megaslm.config.source import dump
from megaslm.engine.distributed import on_first_rank
from megaslm.engine.places import reach
from megaslm.errors import ConfigError
from megaslm.files import UNFINISHED
from megaslm.slm.rule import Moment
from megaslm.slm.threshold import AT_START
from megaslm.training.checkpoints.progress import Progress
from megaslm.training.checkpoints.saver import Saver
from megaslm.training.checkpoints.store import Retention, remove_folder, remove_unfinished
from megaslm.training.job import Job, objective_of


def rehearse(job: Job, say: Callable[[str], None]) -> None:
    """Goes through all that takes memory, and one save; leaves weights, moments and folders as they were.

    Called on all ranks, before a checkpoint is read. What a cut-off save has left is removed first.

    Raises:
        ConfigError: a rank has run out of memory; the message says in what.
        SaveFailed: a checkpoint cannot be written.
        Stopped: some rank was told to stop.
    """
    on_first_rank(lambda: remove_unfinished(job.run.checkpoints))
    started = time.monotonic()
    for name, part in (("a step", _step), ("a validation", _validation), ("a save", _save)):
        job.stop.raise_if_told_anywhere(job.agreement, "it was rehearsing: go on by --resume")
        reach("start", 0)
        try:
            part(job)
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"guard.rehearse: {name} does not fit into the memory of rank {job.world.rank}: {error}; lower "
                "train.micro_batch_rows or validation.batch_rows, set model.gradient_checkpointing, or use more ranks"
            ) from error
    job.engine.state().forget_moments()
    peak = ""
    if job.world.device.type == "cuda":
        peak_gib = torch.cuda.max_memory_allocated(job.world.device) / (1 << 30)
        peak = f"; at most {peak_gib:.1f} GiB of GPU memory on the first rank"
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(job.world.device)
    say(f"rehearsed a step, a validation and a save in {time.monotonic() - started:.0f} s{peak}")


def _step(job: Job) -> None:
    """At a rate of 0, with rows of the first step, where the share of targets is largest and where it is smallest."""
    for tokens in sorted({0, job.config.slm.keep_ratio_warmup_tokens}):
        with closing(job.stream.micro_batches(0)) as stream:
            micro_batches = [rows.to(job.world.device) for rows in islice(stream, job.plan.micro_steps)]
        job.train_step(objective_of(job.config, AT_START))(micro_batches, Moment(1, tokens), learning_rate=0.0)


def _validation(job: Job) -> None:
    def is_to_stop() -> bool:
        reach("start", 0)
        return job.agreement.any(job.stop.told)

    job.validation.run(job.engine, step=0, tokens=0, is_to_stop=is_to_stop)


def _save(job: Job) -> None:
    # Of a name that the next start knows as the remains of a save.
    folder = job.run.checkpoints / f"{UNFINISHED}step-rehearsal"
    saver = Saver(
        folder,
        job.engine.state(),
        dump(job.config),
        job.world,
        job.agreement,
        retention=Retention(1, None),
        max_failed=1,
        damaged=(),
        say=lambda line: None,
        on_saved=lambda progress: None,
    )
    try:
        saver.begin(Progress())
        saver.wait(may_fail=False)
    finally:
        if job.world.is_first:
            remove_folder(folder)
