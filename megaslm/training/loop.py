"""The `train` verb: one loop for every objective."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from megaslm.config.dump import dump
from megaslm.config.plan import BatchPlan, plan_batches
from megaslm.config.schema import RunConfig
from megaslm.data.loading.loader import MicroBatch, TrainingStream
from megaslm.engine.agreement import Agreement
from megaslm.engine.distributed import World, join_world, on_first_rank, wait_for_all
from megaslm.engine.places import reach
from megaslm.engine.stop_signal import StopSignal
from megaslm.engine.zero import ZeroEngine
from megaslm.errors import CheckpointError
from megaslm.slm.objective import Objective
from megaslm.slm.step_plan import Moment
from megaslm.training.checkpoints.progress import Progress
from megaslm.training.checkpoints.resume import Resumed
from megaslm.training.checkpoints.resume import resume as resume_from
from megaslm.training.checkpoints.saver import Saver
from megaslm.training.checkpoints.shared_folder import check_shared
from megaslm.training.checkpoints.store import Retention
from megaslm.training.cost import write_cost
from megaslm.training.domain_counts import DomainCounts
from megaslm.training.from_config import fetch_settings, objective_of
from megaslm.training.origin import doubts, pretrained_folder
from megaslm.training.reporting import Reporter
from megaslm.training.run_folder import RunFolder, check_run
from megaslm.training.schedule import learning_rate
from megaslm.training.selection_check import check_scored, reads_reference
from megaslm.training.start import start_engine
from megaslm.training.step import train_step
from megaslm.training.training_data import TrainingData, fetch_descriptions, open_training_data
from megaslm.training.validation import Validation


def train(config: RunConfig, *, resume: bool = False, stop: StopSignal | None = None) -> None:
    """Trains a model and leaves a run folder; called by every rank that the launcher started, or by one process alone.

    Args:
        config: the run.
        resume: go on from the newest checkpoint that is whole, on any number of ranks; without it a run folder that
            holds a run is refused.
        stop: what notes that the process was told to stop, where that was begun earlier.

    Raises:
        UserMistake: configuration, data, model or checkpoint do not fit; nothing was trained.
        NonFiniteLoss: a loss became NaN or infinite; the newest checkpoint is from before.
        SaveFailed: checkpoints could not be written any more.
        Stopped: some rank was told to stop; the run was saved after its last step.
    """
    if stop is None:
        with StopSignal() as stop:
            train(config, resume=resume, stop=stop)
        return
    reach("start", 0)
    world = join_world()
    agreement = Agreement(world)
    plan = plan_batches(config, world.size)
    data = on_first_rank(lambda: open_training_data(config))
    differences = on_first_rank(lambda: check_run(config, data, resume=resume))
    on_first_rank(lambda: check_scored(config, data, world.device))
    run = RunFolder(Path(config.run_dir))
    if world.is_first_on_host:
        fetch_descriptions(config, data)
    wait_for_all()
    stop.raise_if_told_anywhere(agreement, "training had not begun: start it again")
    validation = Validation(config.validation, world, data.first.manifest, cache=config.data.fetch.cache)
    stream = TrainingStream(
        data.mixture.streams,
        plan,
        shuffle_seed=config.data.shuffle_seed,
        workers=config.data.loader_workers,
        fetch=fetch_settings(config.data.fetch),
    )
    origin = pretrained_folder(config)
    engine = start_engine(config, plan, data, world, origin)
    check_shared(run.path, world)
    stop.raise_if_told_anywhere(agreement, "training had not begun: start it again")
    notes = [f"changed since the run began: {line}" for line in differences]
    resumed = _resume(run, engine, plan, world, notes)
    if resumed.progress.step == 0:
        notes += [f"warning: {line}" for line in on_first_rank(lambda: list(doubts(config, data, origin)))]
    counts = DomainCounts(data.mixture, plan.seq_len, resumed.progress.rows_read)
    last_step = resumed.progress.step
    reporter = Reporter(run, plan, world, domains=data.mixture.domains, counts=counts, last_step=last_step)
    for line in notes:
        reporter.say(line)
    objective = objective_of(config, resumed.progress.selection)
    session = _Session(
        config,
        plan,
        data,
        stream,
        validation,
        run,
        engine,
        world,
        agreement,
        stop,
        resumed,
        objective,
        counts,
        reporter,
    )
    try:
        session.go_on()
    finally:
        reporter.close()


def _resume(run: RunFolder, engine: ZeroEngine, plan: BatchPlan, world: World, notes: list[str]) -> Resumed:
    resumed = resume_from(run.checkpoints, engine.state(), world, notes.append)
    if resumed.progress.step > plan.total_steps:
        raise CheckpointError(
            f"{run.checkpoints}: the run has made {resumed.progress.step} steps; train.total_tokens asks for "
            f"{plan.total_steps} in all"
        )
    return resumed


@dataclass(frozen=True)
class _Session:
    """The loop of one process over one run, from what `resumed` says of it."""

    config: RunConfig
    plan: BatchPlan
    data: TrainingData
    stream: TrainingStream
    validation: Validation
    run: RunFolder
    engine: ZeroEngine
    world: World
    agreement: Agreement
    stop: StopSignal
    resumed: Resumed
    objective: Objective
    counts: DomainCounts
    reporter: Reporter

    def go_on(self) -> None:
        """From where the run stands to its end."""
        started = time.monotonic()
        before = self.resumed.progress
        saver = self._saver()
        if before.step == 0 or before.validation_is_due:
            self._validate(before.step)
        self.stop.raise_if_told_anywhere(self.agreement, f"step {before.step} is saved: go on by --resume")
        micro_batches = self._micro_batches(before.rows_seen)
        for step in range(before.step + 1, self.plan.total_steps + 1):
            reach("data", step)
            self._train(step, list(islice(micro_batches, self.plan.micro_steps)))
            last = step == self.plan.total_steps
            if last or step % self.config.log.every_steps == 0:
                self.reporter.flush()
            validated = True
            if last or self._is_due(self.config.validation.every_tokens, step):
                validated = self._validate(step)
            told, *saving = self.agreement.most(int(self.stop.told), *saver.running_and_failed)
            saver.settle(*saving)
            if last or told or self._is_due(self.config.checkpoint.every_tokens, step):
                self.reporter.flush()
                saver.begin(self._progress(step, time.monotonic() - started, validated=validated))
            if last or told:
                saver.wait(may_fail=False)
            if told and not (last and validated):
                raise self.stop.stopped(f"step {step} is saved: go on by --resume")

    def _train(self, step: int, micro_batches: list[MicroBatch]) -> None:
        reach("step", step)
        # Dropout, where a model has any, is drawn afresh from the step: a resumed run needs no generator's state.
        torch.manual_seed(hash((self.config.seed, step, self.world.rank)))
        result = train_step(
            self.engine,
            self.objective,
            micro_batches,
            self.world,
            eos_id=self.data.eos_id,
            domain_count=len(self.data.mixture.domains),
            may_repeat_rows=self.data.mixture.may_repeat_rows(self.plan.global_batch_rows),
            moment=Moment(step, (step - 1) * self.plan.tokens_per_step),
            learning_rate=learning_rate(self.config.train, step * self.plan.tokens_per_step),
            row_name=self.data.mixture.row_name,
        )
        self.reporter.add(result)

    def _micro_batches(self, rows_seen: int) -> Iterator[MicroBatch]:
        for micro_batch in self.stream.micro_batches(rows_seen):
            yield micro_batch.to(self.world.device)

    def _is_due(self, every_tokens: int | None, step: int) -> bool:
        return every_tokens is not None and step % self.plan.steps_of(every_tokens) == 0

    def _validate(self, step: int) -> bool:
        """Whether it came to its end before some rank was told to stop."""
        reach("validate", step)
        self.reporter.flush()
        tokens = step * self.plan.tokens_per_step
        records = self.validation.run(
            self.engine, step=step, tokens=tokens, is_to_stop=lambda: self.agreement.any(self.stop.told)
        )
        if records is None:
            return False
        self.reporter.write(list(records))
        return True

    def _saver(self) -> Saver:
        checkpoint = self.config.checkpoint
        return Saver(
            self.run.checkpoints,
            self.engine.state(),
            dump(self.config),
            self.world,
            self.agreement,
            retention=Retention(checkpoint.keep_last, checkpoint.keep_every_steps),
            max_failed=checkpoint.max_failed_saves,
            damaged=self.resumed.damaged,
            say=lambda line: self.reporter.say(f"{self.run.path.name} · {line}"),
            on_saved=lambda progress: on_first_rank(lambda: self._write_cost(progress)),
        )

    def _progress(self, step: int, seconds: float, *, validated: bool) -> Progress:
        before = self.resumed.progress
        return Progress(
            step=step,
            rows_seen=before.rows_seen + (step - before.step) * self.plan.global_batch_rows,
            selected_tokens=before.selected_tokens + self.reporter.selected_tokens,
            seconds=before.seconds + seconds,
            rank_seconds=before.rank_seconds + seconds * self.world.size,
            selection=self.objective.state(),
            rows_read=self.counts.rows_read,
            validation_is_due=not validated,
        )

    def _write_cost(self, progress: Progress) -> None:
        write_cost(
            self.run.cost,
            progress,
            progress.step * self.plan.tokens_per_step,
            self.world,
            domains=self.counts,
            checks=self.stream.checked(),
            scored=self.data.datasets if reads_reference(self.config) else (),
        )
