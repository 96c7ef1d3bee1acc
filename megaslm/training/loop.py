"""The `train` verb: one loop for every objective."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from megaslm.config.plan import BatchPlan, plan_batches
from megaslm.config.schema import RunConfig
from megaslm.data.loading.loader import MicroBatch, TrainingStream
from megaslm.engine.distributed import World, join_world, on_first_rank, wait_for_all
from megaslm.engine.zero import ZeroEngine
from megaslm.errors import CheckpointError
from megaslm.slm.objective import Objective
from megaslm.slm.step_plan import Moment
from megaslm.training.checkpoint import Progress, complete_checkpoints, load_checkpoint, save_checkpoint
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


def train(config: RunConfig, *, resume: bool = False) -> None:
    """Trains a model and leaves a run folder; called by every rank that the launcher started, or by one process alone.

    Args:
        config: the run.
        resume: go on from the newest complete checkpoint where there is one; without it a run folder that holds a run
            is refused.

    Raises:
        UserMistake: configuration, data, model or checkpoint do not fit; nothing was trained.
        NonFiniteLoss: a loss became NaN or infinite; the newest checkpoint is from before.
    """
    world = join_world()
    plan = plan_batches(config, world.size)
    data = on_first_rank(lambda: open_training_data(config))
    differences = on_first_rank(lambda: check_run(config, data, resume=resume))
    on_first_rank(lambda: check_scored(config, data, world.device))
    run = RunFolder(Path(config.run_dir))
    if world.is_first_on_host:
        fetch_descriptions(config, data)
    wait_for_all()
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
    progress = _resume(run, engine, plan, world)
    warnings = [] if progress.step else on_first_rank(lambda: list(doubts(config, data, origin)))
    counts = DomainCounts(data.mixture, plan.seq_len, progress.rows_read)
    reporter = Reporter(run, plan, world, domains=data.mixture.domains, counts=counts, last_step=progress.step)
    for line in differences:
        reporter.say(f"changed since the run began: {line}")
    for line in warnings:
        reporter.say(f"warning: {line}")
    session = _Session(
        config,
        plan,
        data,
        stream,
        validation,
        run,
        engine,
        world,
        progress,
        objective_of(config, progress.selection),
        counts,
        reporter,
    )
    try:
        session.go_on()
    finally:
        reporter.close()


def _resume(run: RunFolder, engine: ZeroEngine, plan: BatchPlan, world: World) -> Progress:
    complete = on_first_rank(lambda: complete_checkpoints(run.checkpoints))
    if not complete:
        return Progress(world_size=world.size)
    progress = load_checkpoint(complete[-1], engine, world)
    if progress.step > plan.total_steps:
        raise CheckpointError(
            f"{complete[-1]}: the run has made {progress.step} steps; train.total_tokens asks for "
            f"{plan.total_steps} in all"
        )
    return progress


@dataclass(frozen=True)
class _Session:
    """The loop of one process over one run, from what `before` says of it."""

    config: RunConfig
    plan: BatchPlan
    data: TrainingData
    stream: TrainingStream
    validation: Validation
    run: RunFolder
    engine: ZeroEngine
    world: World
    before: Progress
    objective: Objective
    counts: DomainCounts
    reporter: Reporter

    def go_on(self) -> None:
        """From where the run stands to its end."""
        started = time.monotonic()
        step = self.before.step
        if step == 0:
            self._validate(step)
        micro_batches = self._micro_batches()
        while step < self.plan.total_steps:
            step += 1
            self._train(step, list(islice(micro_batches, self.plan.micro_steps)))
            last = step == self.plan.total_steps
            if last or step % self.config.log.every_steps == 0:
                self.reporter.flush()
            if last or self._is_due(self.config.validation.every_tokens, step):
                self._validate(step)
            if last or self._is_due(self.config.checkpoint.every_tokens, step):
                self._save(step, time.monotonic() - started)

    def _train(self, step: int, micro_batches: list[MicroBatch]) -> None:
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

    def _micro_batches(self) -> Iterator[MicroBatch]:
        rows_seen = self.before.step * self.plan.global_batch_rows
        for micro_batch in self.stream.micro_batches(rows_seen):
            yield micro_batch.to(self.world.device)

    def _is_due(self, every_tokens: int | None, step: int) -> bool:
        return every_tokens is not None and step % self.plan.steps_of(every_tokens) == 0

    def _validate(self, step: int) -> None:
        self.reporter.flush()
        records = self.validation.run(self.engine, step=step, tokens=step * self.plan.tokens_per_step)
        self.reporter.write(list(records))

    def _save(self, step: int, seconds: float) -> None:
        self.reporter.flush()
        progress = Progress(
            step=step,
            selected_tokens=self.before.selected_tokens + self.reporter.selected_tokens,
            seconds=self.before.seconds + seconds,
            world_size=self.world.size,
            selection=self.objective.state(),
            rows_read=self.counts.rows_read,
        )
        checkpoints, keep_last = self.run.checkpoints, self.config.checkpoint.keep_last
        folder = save_checkpoint(checkpoints, self.engine, progress, self.world, keep_last=keep_last)
        on_first_rank(lambda: self._write_cost(progress))
        self.reporter.say(f"{self.run.path.name} · step {step} · saved {folder}")

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
