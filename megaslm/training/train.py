"""The `train` verb: everything before the first step, and the loop as often as it is begun."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from megaslm.config.plan import plan_batches
from megaslm.config.schema import RunConfig
from megaslm.engine.agreement import Agreement
from megaslm.engine.distributed import World, join_world, on_first_rank, wait_for_all
from megaslm.engine.places import reach
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
from megaslm.training.demands import demands_of
from megaslm.training.guard import after_rollbacks, roll_back
from megaslm.training.job import Job, fetch_settings
from megaslm.training.loop import Session
from megaslm.training.rehearsal import rehearse
from megaslm.training.run_folder import RunFolder, alone_in, check_run
from megaslm.training.start import doubts, pretrained_folder, start_engine
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
        reach("start", 0)
        _train(config, world, stop, may_resume=resume)
        reach("end", 0)
        # Looked after until all have come here: what a rank takes down at its end may hang as well.
        wait_for_all()


def _train(config: RunConfig, world: World, stop: StopSignal, *, may_resume: bool) -> None:
    def say(line: str) -> None:
        if world.is_first:
            # A full disk under the output ends no run.
            with suppress(OSError):
                print(line, flush=True)

    for line in preflight(world, demands_of(config)):
        say(line)
    reach("start", 0)
    with alone_in(Path(config.run_dir), world, say):
        require_shared(Path(config.run_dir), "run_dir", world)
        _go_on(_prepare(config, world, stop, say, may_resume=may_resume), say)


def _go_on(job: Job, say: Callable[[str], None]) -> None:
    config = job.config
    if config.guard.rehearse:
        rehearse(job, say)
    resumed = _resume(job, say)
    if resumed.progress.step == 0:
        origin = pretrained_folder(config)
        for line in on_first_rank(lambda: list(doubts(config, job.data, origin))):
            say(f"warning: {line}")
    while True:
        asked = Session(job, resumed).go_on()
        if asked is None:
            return
        resumed = roll_back(job, asked, say)


def _prepare(config: RunConfig, world: World, stop: StopSignal, say: Callable[[str], None], *, may_resume: bool) -> Job:
    """Checks all that can be checked, opens the data and builds the model; called on all ranks."""
    reach("start", 0)
    agreement = Agreement(world)
    plan = plan_batches(config, world.size)
    data = on_first_rank(lambda: open_training_data(config))
    differences = on_first_rank(lambda: check_run(config, data, resume=may_resume))
    for line in differences:
        say(f"changed since the run began: {line}")
    reach("start", 0)
    on_first_rank(lambda: check_scored(config, data, world.device))
    reach("start", 0)
    run = RunFolder(Path(config.run_dir))
    if world.is_first_on_host:
        fetch_descriptions(config, data)
    wait_for_all()
    stop.raise_if_told_anywhere(agreement, _NOTHING_LOST)
    reach("start", 0)
    validation = Validation(config.validation, world, data.first.manifest, cache=config.data.fetch.cache)
    stream = TrainingStream(
        data.mixture.streams,
        plan,
        shuffle_seed=config.data.shuffle_seed,
        workers=config.data.loader_workers,
        fetch=fetch_settings(config.data.fetch),
    )
    reach("start", 0)
    engine = start_engine(config, plan, data, world, pretrained_folder(config))
    stop.raise_if_told_anywhere(agreement, _NOTHING_LOST)
    return Job(config, plan, data, stream, validation, run, engine, world, agreement, stop)


def _resume(job: Job, say: Callable[[str], None]) -> Resumed:
    resumed = resume(job.run.checkpoints, job.engine.state(), job.world, say)
    if resumed.progress.step > job.plan.total_steps:
        raise CheckpointError(
            f"{job.run.checkpoints}: the run has made {resumed.progress.step} steps; train.total_tokens asks for "
            f"{job.plan.total_steps} in all"
        )
    if resumed.progress.row_order != BY_PASSES and job.data.mixture.may_repeat_rows:
        raise CheckpointError(
            f"{job.run.checkpoints}: was written when data.streams with weight or repeat were drawn anew each epoch; "
            "they are read pass after pass now, and where these passes stand cannot be told: start a new "
            "run from this one's model (`megaslm export`, then model.from_pretrained)"
        )
    return _with_new_rows(job, after_rollbacks(job, resumed), say)


def _with_new_rows(job: Job, resumed: Resumed, say: Callable[[str], None]) -> Resumed:
    """Where a run goes on whose datasets may have become longer."""
    progress, now = resumed.progress, job.data.mixture.extent
    extents = lengthened(progress.extents, now, progress.rows_seen, job.stream.order)
    if progress.extents not in ((), extents):
        new_rows, first_epoch = sum(now.rows) - sum(progress.extents[-1].rows), extents[-1].first_epoch
        say(f"the data has become longer: {new_rows:,} training rows more, which are read from epoch {first_epoch} on")
    return replace(resumed, progress=replace(progress, extents=extents))
