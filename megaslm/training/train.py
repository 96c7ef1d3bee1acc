"""The `train` verb: everything before the first step, and the loop as often as it is begun."""

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
from megaslm.training.start import pretrained_folder, reference_warnings, start_engine
from megaslm.training.training_data import fetch_descriptions, open_training_data
from megaslm.training.validation import Validation

_NOTHING_LOST = "no step was made since the start: go on by --resume"


def train(config: RunConfig, *, resume: bool = False, stop: StopSignal | None = None) -> None:
    """Trains a model and leaves a run folder; called by every rank that the launcher started, or by one process alone.

    Args:
        config: the run.
        resume: go on from the newest checkpoint that is whole, on any number of ranks; without it a run folder that
            holds a run is refused.
        stop: what notes that the process was told to stop, where that was begun earlier.

    Raises:
        UserMistake: configuration, data, model or checkpoint do not fit; nothing was trained.
        NonFiniteLoss: too many steps in a row had to be skipped.
        LossSpike: the loss rose as `guard.on_spike` does not allow.
        SaveFailed: checkpoints could not be written any more.
        Stopped: some rank was told to stop; the run was saved after its last step.
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
        # Looked after until all have come here: what a rank takes down at its end may hang as well.
        wait_for_all()


def _train(config: RunConfig, world: World, stop: StopSignal, *, may_resume: bool) -> None:
    def say(line: str) -> None:
        if world.is_first:
            # A full disk under the output ends no run.
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
        for line in on_first_rank(lambda: list(reference_warnings(config, run.data, pretrained))):
            say(f"warning: {line}")
    while True:
        asked = Trainer(run, resumed).run()
        if asked is None:
            return
        resumed = roll_back(run, asked, say)


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
            f"{run.folder.checkpoints}: was written when data.streams with weight or repeat were drawn anew each "
            "epoch; they are read pass after pass now, and where these passes stand cannot be told: start a new "
            "run from this one's model (`megaslm export`, then model.from_pretrained)"
        )
    return _with_new_rows(run, after_rollbacks(run, resumed), say)


def _with_new_rows(run: TrainingRun, resumed: Resumed, say: Callable[[str], None]) -> Resumed:
    """Where a run goes on whose datasets may have become longer."""
    progress, now = resumed.progress, run.data.mixture.extent
    extents = lengthened(progress.extents, now, progress.rows_seen, run.stream.order)
    if progress.extents not in ((), extents):
        new_rows, first_epoch = sum(now.rows) - sum(progress.extents[-1].rows), extents[-1].first_epoch
        say(f"the data has become longer: {new_rows:,} training rows more, which are read from epoch {first_epoch} on")
    return replace(resumed, progress=replace(progress, extents=extents))
