"""The smoke test: the first steps of a run, a validation and a save, in a folder of their own, measured.

Model, data, batch, ranks and schedule are the run's. Only the loop ends early.
"""

import math
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from megaslm.config.measuring import ValidationSection
from megaslm.config.plan import BatchPlan
from megaslm.config.retention import most_kept
from megaslm.config.schema import RunConfig
from megaslm.engine.distributed import gather_objects, on_first_rank
from megaslm.engine.heartbeat import heartbeat
from megaslm.errors import NonFiniteLoss, SaveFailed, Stopped
from megaslm.health.host_facts import resident_bytes
from megaslm.observe.display import counted
from megaslm.observe.records import StepRecord, ValidationRecord, read_step
from megaslm.training.checkpoints.file_list import read_file_list
from megaslm.training.checkpoints.progress import Progress
from megaslm.training.checkpoints.state_files import differing_parameters
from megaslm.training.checkpoints.store import Checkpoint, Resumed, problem_of, step_folder
from megaslm.training.dry_run import lack_of_memory_named
from megaslm.training.loop import Trainer
from megaslm.training.run import TrainingRun
from megaslm.training.smoke_folder import leave_results, smoke_folder, write_result
from megaslm.training.smoke_report import PeakMemory, SmokeResult, report
from megaslm.training.task_validation import TaskValidation
from megaslm.training.validation import Validation

_REMEDY = "a run could not resume from such a checkpoint: try another file system, and another host"
STEPS = 5
"""Steps of a smoke test if its user names none. The first ones are slower: they allocate and compile."""


def as_smoke_test(config: RunConfig) -> RunConfig:
    """The run with a folder of its own, a report of each step, one checkpoint at the end and nothing that goes back."""
    return config.model_copy(
        update={
            "run_dir": str(smoke_folder(config.run_dir)),
            "checkpoint": config.checkpoint.model_copy(update={"every_tokens": None}),
            "guard": config.guard.model_copy(update={"dry_run": False, "on_spike": "warn"}),
            "log": config.log.model_copy(update={"every_steps": 1, "tracker": None}),
        }
    )


def smoke_test(run: TrainingRun, tested: RunConfig, steps: int, say: Callable[[str], None]) -> None:
    """Trains for so many steps of the run, saves, reads back, validates and reports. Called on all ranks.

    Args:
        run: the run, with the configuration of `as_smoke_test`.
        tested: the configuration of the run itself.
        steps: the steps to make; all of the run's where it has fewer.
        say: prints a line, on the first rank.

    Raises:
        ConfigError: a rank ran out of memory; the message names the part.
        NonFiniteLoss: too many steps in a row were skipped.
        SaveFailed: the checkpoint cannot be written, or holds something else than the memory.
        Stopped: a rank was told to stop.
    """
    short = replace(run.plan, total_steps=min(steps, run.plan.total_steps))
    # The trainer would validate before the first step too.
    nothing = Validation(ValidationSection(), run.world, run.data.first.manifest, cache=run.config.data.fetch.cache)
    no_tasks = TaskValidation(ValidationSection(), run.world, Path(), context_tokens=0)
    _train(replace(run, plan=short, validation=nothing, tasks=no_tasks, is_smoke_test=True))
    _read_back(run, short.total_steps)
    started = time.monotonic()
    records = _validate(run, short)
    validation_seconds = time.monotonic() - started
    memory = _peak_memory(run)
    if run.world.is_first:
        say("")
    for line in on_first_rank(lambda: _finish(run, tested, short, records, validation_seconds, memory)):
        say(line)


def _train(run: TrainingRun) -> None:
    try:
        with lack_of_memory_named("--smoke: a step", run.world):
            Trainer(run, Resumed(Progress())).run()
    except Stopped as stopped:
        raise run.stop.stopped("the smoke test has not ended; start it again") from stopped


def _read_back(run: TrainingRun, step: int) -> None:
    heartbeat("load", step)
    folder = step_folder(run.folder.checkpoints, step)
    if (problem := problem_of(Checkpoint(folder, step), run.world)) is not None:
        raise SaveFailed(f"{problem}; {_REMEDY}")
    differing = sorted(
        {name for names in gather_objects(differing_parameters(folder, run.engine.state())) for name in names}
    )
    if differing:
        count = counted(len(differing), "parameter")
        raise SaveFailed(
            f"{folder}: differs from the memory from which it was written, in {count}: {', '.join(differing[:5])}; "
            f"{_REMEDY}"
        )


def _validate(run: TrainingRun, plan: BatchPlan) -> Sequence[ValidationRecord]:
    def is_to_stop() -> bool:
        heartbeat("validate", plan.total_steps)
        return run.cpu_group.any(run.stop.told)

    with lack_of_memory_named("--smoke: a validation", run.world):
        records = run.validation.run(
            run.engine,
            step=plan.total_steps,
            tokens=plan.total_steps * plan.tokens_per_step,
            is_to_stop=is_to_stop,
        )
    if records is None:
        raise run.stop.stopped("the smoke test has not ended; start it again")
    return records


def _peak_memory(run: TrainingRun) -> PeakMemory:
    device, rank = run.world.device, run.world.rank
    if device.type == "cuda":
        peak = PeakMemory(torch.cuda.max_memory_reserved(device), torch.cuda.mem_get_info(device)[1], rank)
    else:
        peak = PeakMemory(resident_bytes("VmHWM"), None, rank)
    return max(gather_objects(peak), key=lambda one: one.peak_bytes)


def _finish(
    run: TrainingRun,
    tested: RunConfig,
    made: BatchPlan,
    records: Sequence[ValidationRecord],
    validation_seconds: float,
    memory: PeakMemory,
) -> list[str]:
    """Writes the result, removes the checkpoint, and returns the lines that tell the result."""
    steps = [
        record
        for step in range(1, made.total_steps + 1)
        for record in read_step(run.folder.metrics, step)
        if isinstance(record, StepRecord)
    ]
    if not steps:
        raise NonFiniteLoss(
            f"all {made.total_steps} steps of the smoke test were skipped, for the reasons above; lower train.lr, or "
            "verify the dataset and the starting weights"
        )
    seconds = [made.tokens_per_step / record.tokens_per_second for record in steps]
    checkpoint = step_folder(run.folder.checkpoints, made.total_steps)
    checkpoint_bytes = sum(file.size for file in read_file_list(checkpoint).values())
    leave_results(run.folder.path)
    step_seconds = statistics.median(seconds[1:] or seconds)
    every = tested.validation.every_tokens
    validations = run.plan.times_due(every) + 1 if tested.validation.sets else 0
    result = SmokeResult(
        run_dir=tested.run_dir,
        steps=made.total_steps,
        ranks=run.world.size,
        total_steps=run.plan.total_steps,
        validations=validations,
        checkpoints=run.plan.times_due(tested.checkpoint.every_tokens),
        checkpoints_kept=most_kept(tested, run.plan),
        losses=tuple(record.loss if record.all_loss is None else record.all_loss for record in steps),
        uniform_loss=math.log(run.data.first.manifest.vocab_size),
        skipped_steps=made.total_steps - len(steps),
        validation_losses={record.place: record.loss for record in records},
        first_step_seconds=seconds[0],
        step_seconds=step_seconds,
        validation_seconds=validation_seconds,
        tokens_per_second=made.tokens_per_step / step_seconds,
        peak_memory=memory,
        checkpoint_bytes=checkpoint_bytes,
        disk_free_bytes=shutil.disk_usage(run.folder.path).free,
        run_seconds=run.plan.total_steps * step_seconds + validations * validation_seconds,
    )
    write_result(run.folder.path, {"passed": True, **asdict(result), "peak_memory": memory._asdict()})
    return list(report(result))
