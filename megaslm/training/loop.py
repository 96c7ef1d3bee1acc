"""The `train` verb: one loop for every objective."""

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from megaslm.config.plan import BatchPlan, plan_batches
from megaslm.config.schema import RunConfig
from megaslm.data.loader import MicroBatch, TrainingStream
from megaslm.engine.distributed import World, join_world, on_first_rank
from megaslm.engine.zero import ZeroEngine
from megaslm.errors import CheckpointError
from megaslm.slm.objective import CausalObjective, Objective, SelectiveObjective
from megaslm.training.checkpoint import Progress, complete_checkpoints, load_checkpoint, save_checkpoint
from megaslm.training.cost import write_cost
from megaslm.training.reporting import Reporter
from megaslm.training.run_folder import RunFolder, check_run
from megaslm.training.schedule import learning_rate
from megaslm.training.start import TrainingData, check_scored, open_training_data, start_engine
from megaslm.training.step import train_step
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
    differences = on_first_rank(lambda: check_run(config, data.manifest, resume=resume))
    on_first_rank(lambda: check_scored(config, data, world))
    run = RunFolder(Path(config.run_dir))
    engine = start_engine(config, plan, data, world)
    progress = _resume(run, engine, plan, world)
    session = _Session(config, plan, data, run, engine, world, progress)
    for line in differences:
        session.reporter.say(f"changed since the run began: {line}")
    try:
        session.go_on()
    finally:
        session.reporter.close()


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


class _Session:
    """The loop of one process over one run."""

    def __init__(
        self,
        config: RunConfig,
        plan: BatchPlan,
        data: TrainingData,
        run: RunFolder,
        engine: ZeroEngine,
        world: World,
        progress: Progress,
    ) -> None:
        self._config = config
        self._plan = plan
        self._data = data
        self._run = run
        self._engine = engine
        self._world = world
        self._before = progress
        self._saved_step = progress.step
        self._objective = _objective(config)
        self._validation = Validation(config.validation, world, data.manifest)
        self.reporter = Reporter(run, plan, world, last_step=progress.step)

    def go_on(self) -> None:
        """From where the run stands to its end."""
        started = time.monotonic()
        step = self._before.step
        if step == 0:
            self._validate(step)
        micro_batches = self._micro_batches()
        while step < self._plan.total_steps:
            step += 1
            self._train(step, list(islice(micro_batches, self._plan.micro_steps)))
            last = step == self._plan.total_steps
            if last or step % self._config.log.every_steps == 0:
                self.reporter.flush()
            if last or self._is_due(self._config.validation.every_tokens, step):
                self._validate(step)
            if last or self._is_due(self._config.checkpoint.every_tokens, step):
                self._save(step, time.monotonic() - started)

    def _train(self, step: int, micro_batches: list[MicroBatch]) -> None:
        # Dropout, where a model has any, is drawn afresh from the step: a resumed run needs no generator's state.
        torch.manual_seed(hash((self._config.seed, step, self._world.rank)))
        result = train_step(
            self._engine,
            self._objective,
            micro_batches,
            self._world,
            eos_id=self._data.manifest.eos_id,
            step=step,
            learning_rate=learning_rate(self._config.train, step * self._plan.tokens_per_step),
        )
        self.reporter.add(result)

    def _micro_batches(self) -> Iterator[MicroBatch]:
        stream = TrainingStream(
            self._data.dataset,
            self._data.manifest,
            self._plan,
            domains=self._data.domains,
            shuffle_seed=self._config.data.shuffle_seed,
            workers=self._config.data.loader_workers,
        )
        for micro_batch in stream.micro_batches(self._before.step * self._plan.global_batch_rows):
            yield micro_batch.to(self._world.device)

    def _is_due(self, every_tokens: int | None, step: int) -> bool:
        return every_tokens is not None and step % self._plan.steps_of(every_tokens) == 0

    def _validate(self, step: int) -> None:
        self.reporter.flush()
        records = self._validation.run(self._engine, step=step, tokens=step * self._plan.tokens_per_step)
        self.reporter.write(list(records))

    def _save(self, step: int, seconds: float) -> None:
        self.reporter.flush()
        progress = Progress(
            step=step,
            selected_tokens=self._before.selected_tokens + self.reporter.selected_tokens,
            seconds=self._before.seconds + seconds,
            world_size=self._world.size,
        )
        checkpoints, keep_last = self._run.checkpoints, self._config.checkpoint.keep_last
        folder = save_checkpoint(checkpoints, self._engine, progress, self._world, keep_last=keep_last)
        scored = self._data.dataset if self._data.manifest.kind == "scored" else None
        tokens_seen = step * self._plan.tokens_per_step
        on_first_rank(lambda: write_cost(self._run.cost, progress, tokens_seen, self._world, scored_dataset=scored))
        self.reporter.say(f"{self._run.path.name} · step {step} · saved {folder}")


def _objective(config: RunConfig) -> Objective:
    if config.train.objective == "clm":
        return CausalObjective()
    return SelectiveObjective(config.slm.keep_ratio, config.slm.scope)
