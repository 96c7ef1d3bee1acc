"""The `train` verb: everything before the first step, then the loop, again after each roll-back."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from megaslm.config.plan import plan_batches
from megaslm.config.schema import RunConfig
from megaslm.engine.cpu_group import CpuGroup
from megaslm.engine.distributed import World, join_world, on_first_rank, wait_for_all
from megaslm.engine.heartbeat import heartbeat
from megaslm.engine.stop_signal import StopSignal
from megaslm.errors import CheckpointError
from megaslm.health.preflight import preflight
from megaslm.health.shared_folders import require_shared
from megaslm.health.watchdog import Watchdog
from megaslm.stream.loader import TrainingStream
from megaslm.stream.mixture import lengthened
from megaslm.training.checkpoints.progress import BY_PASSES
from megaslm.training.checkpoints.store import Resumed, resume
from megaslm.training.data_checks import check_scored
from megaslm.training.dry_run import dry_run
from megaslm.training.guard import after_rollbacks, roll_back
from megaslm.training.loop import Trainer
from megaslm.training.requirements import requirements_of
from megaslm.training.run import TrainingRun, fetch_settings
from megaslm.training.run_folder import RunFolder, alone_in, check_run
from megaslm.training.start import bos_warnings, pretrained_folder, reference_warnings, start_engine
from megaslm.training.training_data import TrainingData, fetch_descriptions, open_training_data
from megaslm.training.validation import Validation

_NOTHING_LOST = "no step was made since the start: start again with --resume"


def train(config: RunConfig, *, resume: bool = False, stop: StopSignal | None = None) -> None:
    """Trains a model and writes a run folder. Called by every rank that the launcher started, or by a single process.

    Args:
        config: the run.
        resume: resume from the newest intact checkpoint, on any number of ranks. If false, a run folder that holds a
            run is refused.
        stop: the stop signal, if the caller has set one up.

    Raises:
        UserMistake: configuration, data, model or checkpoint do not fit; nothing was trained.
        NonFiniteLoss: too many steps in a row were skipped.
        LossSpike: the loss rose more than `guard.on_spike` allows.
        SaveFailed: too many saves in a row failed.
        Stopped: a rank was told to stop; the run was saved after its last step.
    """
    if stop is None:
        with StopSignal() as stop:
            train(config, resume=resume, stop=stop)
        return
    guard = config.guard
    world = join_world()
    with Watchdog(world, silence_seconds=guard.silence_seconds, hang_seconds=guard.hang_seconds):
        heartbeat("start", 0)
        _train(config, world, stop, may_resume=resume)
        heartbeat("end", 0)
        # The watchdog runs until all ranks are here: a rank may also hang in its teardown.
        wait_for_all()


def _train(config: RunConfig, world: World, stop: StopSignal, *, may_resume: bool) -> None:
    def say(line: str) -> None:
        if world.is_first:
            # A full disk under the output must not end the run.
            with suppress(OSError):
                print(line, flush=True)

    for line in preflight(world, requirements_of(config)):
        say(line)
    heartbeat("start", 0)
    with alone_in(Path(config.run_dir), world, say):
        require_shared(Path(config.run_dir), "run_dir", world)
        _train_to_the_end(_prepare(config, world, stop, say, may_resume=may_resume), say)


def _train_to_the_end(run: TrainingRun, say: Callable[[str], None]) -> None:
    config = run.config
    if config.guard.dry_run:
        dry_run(run, say)
    resumed = _resume(run, say)
    if resumed.progress.step == 0:
        pretrained = pretrained_folder(config)
        for line in on_first_rank(lambda: _warnings(config, run.data, pretrained)):
            say(f"warning: {line}")
    while True:
        asked = Trainer(run, resumed).run()
        if asked is None:
            return
        resumed = roll_back(run, asked, say)


def _warnings(config: RunConfig, data: TrainingData, pretrained: Path | None) -> list[str]:
    return [*bos_warnings(data, pretrained), *reference_warnings(config, data, pretrained)]


def _prepare(
    config: RunConfig, world: World, stop: StopSignal, say: Callable[[str], None], *, may_resume: bool
) -> TrainingRun:
    """Checks all that can be checked, opens the data and builds the model; called on all ranks."""
    heartbeat("start", 0)
    cpu_group = CpuGroup(world)
    plan = plan_batches(config, world.size)
    data = on_first_rank(lambda: open_training_data(config))
    differences = on_first_rank(lambda: check_run(config, data, resume=may_resume))
    for line in differences:
        say(f"changed since the run began: {line}")
    heartbeat("start", 0)
    on_first_rank(lambda: check_scored(config, data, world.device))
    heartbeat("start", 0)
    run = RunFolder(Path(config.run_dir))
    if world.is_first_on_host:
        fetch_descriptions(config, data)
    wait_for_all()
    stop.raise_if_told_anywhere(cpu_group, _NOTHING_LOST)
    heartbeat("start", 0)
    validation = Validation(config.validation, world, data.first.manifest, cache=config.data.fetch.cache)
    stream = TrainingStream(
        data.mixture.streams,
        plan,
        shuffle_seed=config.data.shuffle_seed,
        workers=config.data.loader_workers,
        fetch=fetch_settings(config.data.fetch),
    )
    heartbeat("start", 0)
    engine = start_engine(config, plan, data, world, pretrained_folder(config))
    stop.raise_if_told_anywhere(cpu_group, _NOTHING_LOST)
    return TrainingRun(config, plan, data, stream, validation, run, engine, world, cpu_group, stop)


def _resume(run: TrainingRun, say: Callable[[str], None]) -> Resumed:
    resumed = resume(run.folder.checkpoints, run.engine.state(), run.world, say)
    if resumed.progress.step > run.plan.total_steps:
        raise CheckpointError(
            f"{run.folder.checkpoints}: the run has made {resumed.progress.step} steps; train.total_tokens asks for "
            f"{run.plan.total_steps} in all"
        )
    if resumed.progress.row_order != BY_PASSES and run.data.mixture.may_repeat_rows:
        raise CheckpointError(
            f"{run.folder.checkpoints}: was written by a version that drew data.streams with weight or repeat anew "
            "each epoch; this version reads them pass after pass and cannot tell the position in these passes; start "
            "a new run from this one's model (`megaslm export`, then model.from_pretrained)"
        )
    return _with_new_rows(run, after_rollbacks(run, resumed), say)


def _with_new_rows(run: TrainingRun, resumed: Resumed, say: Callable[[str], None]) -> Resumed:
    """Adds the rows by which the datasets have become longer since the checkpoint."""
    progress, now = resumed.progress, run.data.mixture.extent
    extents = lengthened(progress.extents, now, progress.rows_seen, run.stream.order)
    if progress.extents not in ((), extents):
        new_rows, first_epoch = sum(now.rows) - sum(progress.extents[-1].rows), extents[-1].first_epoch
        say(f"the data has become longer: {new_rows:,} more training rows are read from epoch {first_epoch} on")
    return replace(resumed, progress=replace(progress, extents=extents))
