"""The `train` verb: everything before the first step, then the loop, again after each roll-back."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from megaslm.config.plan import BatchPlan, plan_batches
from megaslm.config.retention import retention_warnings
from megaslm.config.schema import RunConfig
from megaslm.dataset.fit import distills
from megaslm.dataset.manifest import TOKENIZER
from megaslm.engine.cpu_group import CpuGroup
from megaslm.engine.distributed import World, gather_objects, join_world, on_first_rank, wait_for_all
from megaslm.engine.fixed_order import prepare_fixed_order
from megaslm.engine.heartbeat import heartbeat
from megaslm.engine.stop_signal import StopSignal
from megaslm.errors import CheckpointError
from megaslm.health.findings import Requirements
from megaslm.health.preflight import preflight
from megaslm.health.shared_folders import require_shared
from megaslm.health.watchdog import Watchdog
from megaslm.model.attention import flash
from megaslm.model.decoder_layers import compile_line
from megaslm.model.documents import kernel_name
from megaslm.observe.third_party_output import keep_in
from megaslm.observe.tracker import check_tracker
from megaslm.stream.loader import TrainingStream
from megaslm.stream.order import extent_of, lengthened
from megaslm.training.changes import check_allowed_keys
from megaslm.training.checkpoints.store import Resumed, resume
from megaslm.training.data_checks import check_scored
from megaslm.training.dataset_cut import with_dataset_threshold
from megaslm.training.dry_run import dry_run
from megaslm.training.exact_way import exact_way
from megaslm.training.guard import after_rollbacks, roll_back
from megaslm.training.length import end_line, plan_lines, with_total_tokens
from megaslm.training.loop import Trainer
from megaslm.training.memory_check import MemoryCheck
from megaslm.training.probe import Probe
from megaslm.training.requirements import requirements_of
from megaslm.training.resumption import check_run, no_step_made
from megaslm.training.run import TrainingRun
from megaslm.training.run_folder import RunFolder, alone_in, record_run
from megaslm.training.selection_rule import weight_range
from megaslm.training.smoke import as_smoke_test, smoke_test
from megaslm.training.smoke_folder import check_replaceable, start_over
from megaslm.training.start import (
    bos_warnings,
    pretrained_folder,
    reference_warnings,
    start_engine,
    unfinished_warnings,
)
from megaslm.training.task_validation import TaskValidation
from megaslm.training.training_data import TrainingData, fetch_descriptions, open_training_data
from megaslm.training.validation import Validation


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    allow_changed: Collection[str] = (),
    smoke_steps: int | None = None,
    stop: StopSignal | None = None,
) -> None:
    """Trains a model and writes a run folder. Called by every rank that the launcher started, or by a single process.

    Args:
        config: the run.
        resume: resume from the newest intact checkpoint, on any number of ranks. If false, a run folder that holds a
            run is refused.
        allow_changed: the settings that may have changed on resume although they shape the optimisation.
        smoke_steps: makes a smoke test of so many steps beside the run folder instead of training; `resume` then means
            nothing.
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
            train(config, resume=resume, allow_changed=allow_changed, smoke_steps=smoke_steps, stop=stop)
        return
    check_allowed_keys(allow_changed, config)
    check_tracker(config.log.tracker)
    guard = config.guard
    if config.train.deterministic:
        prepare_fixed_order()
    world = join_world()
    with Watchdog(world, silence_seconds=guard.silence_seconds, hang_seconds=guard.hang_seconds):
        heartbeat("start", 0)
        flash.activate(config.model.flash_attention, world.device, name="model.flash_attention =")
        if smoke_steps is None:
            _train(config, world, stop, may_resume=resume, allow_changed=allow_changed)
        else:
            _smoke(config, world, stop, smoke_steps)
        heartbeat("end", 0)
        # The watchdog runs until all ranks are here: a rank may also hang in its teardown.
        wait_for_all()


def _train(
    config: RunConfig, world: World, stop: StopSignal, *, may_resume: bool, allow_changed: Collection[str]
) -> None:
    say = _voice(world)
    with _run_folder(config, requirements_of(config), world, say):
        data = on_first_rank(lambda: open_training_data(config))
        config = on_first_rank(partial(with_dataset_threshold, with_total_tokens(config, data.mixture.rows), data))
        plan = plan_batches(config, world.size)
        differences = on_first_rank(
            lambda: check_run(config, data.read, resume=may_resume, allow_changed=allow_changed)
        )
        for line in differences:
            say(f"changed since the run began: {line}")
        run = _prepare(config, plan, data, world, stop, say)
        # A smoke test empties its folder at its end.
        if any(gather_objects(keep_in(run.folder.logs / f"rank-{world.rank}.log"))):
            say(f"what PyTorch and DeepSpeed printed is in {run.folder.logs}")
        _train_to_the_end(run, say)


def _smoke(config: RunConfig, world: World, stop: StopSignal, steps: int) -> None:
    say = _voice(world)
    tried = as_smoke_test(config)
    folder = Path(tried.run_dir)
    on_first_rank(lambda: check_replaceable(folder))
    with _run_folder(tried, requirements_of(tried, smoke_steps=steps), world, say):
        on_first_rank(lambda: start_over(folder))
        data = on_first_rank(lambda: open_training_data(tried))
        tried = on_first_rank(partial(with_dataset_threshold, with_total_tokens(tried, data.mixture.rows), data))
        run = _prepare(tried, plan_batches(tried, world.size), data, world, stop, say)
        _say_plan(run, config, say, after_step=0)
        smoke_test(run, config, steps, say)


def _voice(world: World) -> Callable[[str], None]:
    def say(line: str) -> None:
        if world.is_first:
            # A full disk under the output must not end the run.
            with suppress(OSError):
                print(line, flush=True)

    return say


@contextmanager
def _run_folder(
    config: RunConfig, requirements: Requirements, world: World, say: Callable[[str], None]
) -> Iterator[None]:
    """After the preflight, keeps other jobs out of the run's folder, which all hosts must share."""
    for line in preflight(world, requirements):
        say(line)
    heartbeat("start", 0)
    with alone_in(Path(config.run_dir), world, say):
        require_shared(Path(config.run_dir), "run_dir", world)
        yield


def _train_to_the_end(run: TrainingRun, say: Callable[[str], None]) -> None:
    config = run.config
    if config.guard.dry_run:
        dry_run(run, say)
    resumed = _resume(run, say)
    on_first_rank(lambda: record_run(config, run.data))
    if run.stop.before_work is not None:
        run.stop.before_work = no_step_made(config.run_dir)
    _say_plan(run, config, say, after_step=resumed.progress.step)
    while True:
        asked = Trainer(run, resumed).run()
        if asked is None:
            say(end_line(config))
            return
        resumed = roll_back(run, asked, say)


def _say_plan(run: TrainingRun, config: RunConfig, say: Callable[[str], None], *, after_step: int) -> None:
    for line in plan_lines(config, run.plan, run.data.mixture, after_step=after_step):
        say(line)
    lm = run.engine.model.lm
    say(f"attention: {kernel_name(lm.config, run.world.device, lm.dtype)}")
    compiling = compile_line(config.model.compile, run.world.device, name="model.compile =")
    for told in (compiling, run.exact_way.line):
        if told is not None:
            say(told)
    for line in retention_warnings(config, run.plan.total_steps):
        say(f"warning: {line}")
    if after_step == 0:
        pretrained = pretrained_folder(config)
        for line in on_first_rank(lambda: _warnings(config, run.data, pretrained)):
            say(f"warning: {line}")


def _warnings(config: RunConfig, data: TrainingData, pretrained: Path | None) -> list[str]:
    return [
        *bos_warnings(data, pretrained),
        *reference_warnings(config, data, pretrained),
        *unfinished_warnings(pretrained),
    ]


def _prepare(
    config: RunConfig,
    plan: BatchPlan,
    data: TrainingData,
    world: World,
    stop: StopSignal,
    say: Callable[[str], None],
) -> TrainingRun:
    """Checks all that can be checked, and builds the model; called on all ranks."""
    heartbeat("start", 0)
    cpu_group = CpuGroup(world)
    for line in on_first_rank(lambda: check_scored(config, data, world.device)):
        say(line)
    heartbeat("start", 0)
    run = RunFolder(Path(config.run_dir))
    if world.is_first_on_host:
        fetch_descriptions(config, data)
    wait_for_all()
    stop.raise_if_told_anywhere(cpu_group, no_step_made(config.run_dir))
    heartbeat("start", 0)
    validation = Validation(config.validation, world, data.first.manifest, cache=config.data.fetch.cache)
    stream = TrainingStream(
        data.mixture.streams,
        plan,
        shuffle_seed=config.data.shuffle_seed,
        workers=config.data.loader_workers,
        fetch=config.data.fetch,
        eos_id=data.eos_id if config.model.document_isolation else None,
        weight_range=weight_range(config),
        distills=distills(config),
    )
    heartbeat("start", 0)
    engine = start_engine(config, plan, data, world, pretrained_folder(config))
    stop.raise_if_told_anywhere(cpu_group, no_step_made(config.run_dir))
    way = exact_way(config, plan, engine, world)
    memory = MemoryCheck.before_the_first_step(engine)
    tasks = TaskValidation(
        config.validation,
        world,
        data.first.source.path / TOKENIZER,
        context_tokens=engine.model.lm.config.max_position_embeddings,
    )
    probe = Probe(config, world, data)
    return TrainingRun(
        config, plan, data, stream, validation, tasks, probe, run, engine, way, memory, world, cpu_group, stop
    )


def _resume(run: TrainingRun, say: Callable[[str], None]) -> Resumed:
    resumed = resume(run.folder.checkpoints, run.engine.state(), run.world, say)
    if resumed.progress.step > run.plan.total_steps:
        raise CheckpointError(
            f"{run.folder.checkpoints}: the run has made {resumed.progress.step} steps; train.total_tokens asks for "
            f"{run.plan.total_steps} in all"
        )
    resumed.progress.require_row_order(run.data.mixture, run.folder.checkpoints)
    return _with_new_rows(run, after_rollbacks(run, resumed), say)


def _with_new_rows(run: TrainingRun, resumed: Resumed, say: Callable[[str], None]) -> Resumed:
    """Adds the rows by which the datasets have become longer since the checkpoint."""
    progress, now = resumed.progress, extent_of(run.data.mixture.streams)
    extents = lengthened(progress.extents, now, progress.rows_seen, run.stream.order)
    if progress.extents not in ((), extents):
        new_rows, first_epoch = sum(now.rows) - sum(progress.extents[-1].rows), extents[-1].first_epoch
        say(f"the data has become longer: {new_rows:,} more training rows are read from epoch {first_epoch} on")
    return replace(resumed, progress=replace(progress, extents=extents))
