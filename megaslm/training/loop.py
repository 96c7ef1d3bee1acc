"""The training loop, one for every objective: from a run's current step to its end."""

import math
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice

import torch

from megaslm.config.schema import TrainSection
from megaslm.engine.heartbeat import heartbeat
from megaslm.errors import LossSpike, NonFiniteLoss, SaveFailed, Stopped
from megaslm.health.pace import PaceMeter
from megaslm.model.forward_flops import forward_flops
from megaslm.observe.records import PaceRecord, SaveRecord
from megaslm.slm.rule import Moment
from megaslm.stream.loader import MicroBatch
from megaslm.training.checkpoints.progress import Progress
from megaslm.training.checkpoints.store import Resumed
from megaslm.training.guard import RollBack, SkipCount, Spike, SpikeWatch
from megaslm.training.meters import RunMeters
from megaslm.training.pace import PaceWatch
from megaslm.training.reporting import Reporter
from megaslm.training.run import TrainingRun, description_of, objective_of
from megaslm.training.saving import make_saver
from megaslm.training.training_data import DomainCounts


class Trainer:
    """One pass through the loop, until the end or a roll-back. Every method is called on all ranks."""

    def __init__(self, run: TrainingRun, resumed: Resumed) -> None:
        """Starts after the step of `resumed`."""
        guard = run.config.guard
        self._run = run
        self._before = resumed.progress
        self._spikes = SpikeWatch(guard.spike_sigmas, guard.spike_window_steps, self._before.recent_losses)
        self._spike: Spike | None = None
        self._skips = SkipCount(guard.max_skipped_steps, self._before.skipped_in_a_row)
        meters = RunMeters(run.config, run.plan, run.world, forward_flops(run.engine.model.lm.config))
        self._clock = meters.clock
        self._step = run.train_step(
            objective_of(run.config, run.data.mixture.domains, self._before.selection),
            backward_cosine=self._before.backward_cosine,
            ends=self._clock.mark,
        )
        self._counts = DomainCounts(run.data.mixture, run.plan.seq_len, self._before.rows_read)
        self._reporter = Reporter(
            run.folder,
            run.plan,
            run.world,
            domains=run.data.mixture.domains,
            counts=self._counts,
            meters=meters,
            description=description_of(run.config),
            log=run.config.log,
            last_step=self._before.step,
            skipped_steps=self._before.skipped_steps,
            selected_tokens=self._before.selected_tokens,
            validation_is_due=self._before.validation_is_due,
        )
        self._saver = make_saver(
            run,
            resumed.corrupt,
            self._reporter.say,
            on_saved=self._tell_save,
            saved_step=resumed.progress.step,
        )
        self._at_step = self._before.step
        self._save_begun_at = self._save_halted_seconds = 0.0
        self._meter = PaceMeter(run.world)
        self._pace = PaceWatch(self._meter, run.world, slow_ratio=guard.slow_ratio, last_step=self._before.step)
        self._started = time.monotonic()

    def run(self) -> RollBack | None:
        """Trains to the end of the run, or returns the roll-back that a spike requires."""
        try:
            with closing(self._run.stream.micro_batches(self._before.rows_seen, self._before.extents)) as micro_batches:
                return self._steps(micro_batches)
        except (LossSpike, NonFiniteLoss) as error:
            # All ranks raise together, and the save under way is worth keeping.
            self._reporter.alert("stopped", str(error))
            self._saver.wait()
            raise
        except (SaveFailed, Stopped) as error:
            self._reporter.alert("stopped", str(error))
            raise
        finally:
            self._run.memory.end()
            self._meter.close()
            self._reporter.close()

    def _steps(self, micro_batches: Iterator[MicroBatch]) -> RollBack | None:
        run, config, before = self._run, self._run.config, self._before
        if before.step == 0 or before.validation_is_due:
            self._validate(before.step)
        run.probe.start_after(before.step)
        if self._probe_is_due(before.step):
            self._measure_probe(before.step)
        run.stop.raise_if_told_anywhere(run.cpu_group, self._kept(before.step))
        run.stop.before_work = None
        run.memory.begin(run.world.device)
        for step in range(before.step + 1, run.plan.total_steps + 1):
            # Asked before the step, so that no rank waits for the answer after it.
            answer = run.cpu_group.ask(int(run.stop.told), *self._saver.running_and_failed)
            self._train(step, micro_batches)
            told, running, failed = answer.read()
            # Before a validation, which may take long: what is said of a save is not to come after it.
            self._saver.settle(running, failed)
            last = step == run.plan.total_steps
            if last or step % config.log.every_steps == 0:
                self._flush()
                if last or step > before.step + 1:
                    self._compare_memory()
                self._compare_ranks(step)
            validated = True
            if run.plan.is_due(config.validation.every_tokens, step):
                validated = self._validate(step)
            probed = not self._probe_is_due(step) or self._measure_probe(step)
            # A validation ends early if a rank was told to stop, even after the question. So does a measurement.
            told = told or not (validated and probed)
            saves = told or run.plan.is_due(config.checkpoint.every_tokens, step)
            if saves:
                self._flush()
            if self._spike is not None and config.guard.on_spike == "rollback":
                self._saver.wait()
                return RollBack(self._spike, step, self._rows_seen(step), self._before.extents)
            if saves:
                self._reporter.sync()
                self._begin_save(step, validated=validated)
            if last or told:
                self._saver.wait(may_fail=False)
            if told and not (last and validated and probed):
                raise run.stop.stopped(self._kept(step))
        return None

    def _train(self, step: int, micro_batches: Iterator[MicroBatch]) -> None:
        run = self._run
        heartbeat("data", step)
        self._at_step = step
        self._clock.mark(None)
        begun_at = time.perf_counter()
        rows = [micro_batch.to(run.world.device) for micro_batch in islice(micro_batches, run.plan.micro_steps)]
        loading_seconds = time.perf_counter() - begun_at
        self._clock.mark("data_wait")
        heartbeat("step", step)
        # The seed of dropout depends on the step: a resumed run needs no generator's state.
        torch.manual_seed(hash((run.config.seed, step, run.world.rank)))
        moment = Moment(step, (step - 1) * run.plan.tokens_per_step)
        result = self._step(rows, moment, learning_rate(run.config.train, step * run.plan.tokens_per_step))
        self._clock.mark("other")
        self._meter.add_step(loading_seconds=loading_seconds, step_seconds=time.perf_counter() - begun_at)
        self._reporter.add(result)
        self._skips.add(step, result.skipped)

    def _flush(self) -> None:
        on_spike = self._run.config.guard.on_spike
        for record in self._reporter.flush():
            spike = None if on_spike == "off" else self._spikes.add(record.step, record.loss)
            if spike is not None and self._spike is None:
                self._reporter.alert("loss spike", str(spike))
                if on_spike == "warn":
                    self._reporter.say(f"warning: {spike}")
                if on_spike == "stop":
                    raise LossSpike(
                        f"{spike}; guard.on_spike = stop: look at the rows that were read then; "
                        f"{self._run.how_to_start_again()}, and with guard.on_spike = rollback to leave them out"
                    )
            # A spike to roll back from is kept until the roll-back. Of other consecutive spikes only the first is told.
            if on_spike != "rollback" or self._spike is None:
                self._spike = spike

    def _compare_ranks(self, step: int) -> None:
        found = self._pace.report(step)
        if self._run.world.size > 1:
            self._reporter.write([PaceRecord(step, found.slowest_rank, found.slowest_ratio)])
        for line in found.news:
            self._reporter.say(line)

    def _compare_memory(self) -> None:
        """The first step is too early: Adam makes its moments at its end."""
        run = self._run
        run.memory.compare(
            run.config,
            run.plan,
            run.engine,
            run.world,
            keeps_graphs=run.exact_way.keeps_graphs,
            say=self._reporter.say,
        )
        # The steps after it do not take the time of the comparison.
        self._reporter.write([])

    def _validate(self, step: int) -> bool:
        """Whether the validation finished before a rank was told to stop."""
        self._flush()
        run = self._run
        records = run.validation.run(
            run.engine, step=step, tokens=step * run.plan.tokens_per_step, is_to_stop=lambda: self._is_to_stop(step)
        )
        if records is None:
            return False
        self._reporter.write(list(records))
        heartbeat("validate", step)
        answered = run.tasks.run(run.engine, run.cpu_group, step=step, tokens=step * run.plan.tokens_per_step)
        self._reporter.write(answered)
        return True

    def _probe_is_due(self, step: int) -> bool:
        every_tokens = self._run.config.probe.every_tokens
        return every_tokens is not None and (step == 0 or self._run.plan.is_due(every_tokens, step))

    def _measure_probe(self, step: int) -> bool:
        """Whether the measurement finished before a rank was told to stop. If not, the resumed run makes it."""
        run = self._run
        self._flush()
        finished = run.probe.measure(
            run.engine,
            step=step,
            tokens=step * run.plan.tokens_per_step,
            is_to_stop=lambda: self._is_to_stop(step),
            say=self._reporter.say,
            tell=lambda record: self._reporter.write([record]),
            # What a validation that is made again takes back goes up to the end of the file.
            tells_again=self._before.validation_is_due,
        )
        # The time of the measurement is no time of steps.
        self._reporter.write([])
        return finished

    def _is_to_stop(self, step: int) -> bool:
        heartbeat("validate", step)
        return self._run.cpu_group.any(self._run.stop.told)

    def _kept(self, step: int) -> str:
        if step:
            return f"step {step} is saved: resume with --resume"
        return f"no step was made yet: {self._run.how_to_start_again()}"

    def _begin_save(self, step: int, *, validated: bool) -> None:
        # The save before must be complete first: waiting for it would count as a halt for this one.
        self._saver.wait()
        self._save_begun_at = time.monotonic()
        self._saver.begin(self._progress(step, validated=validated))
        self._save_halted_seconds = time.monotonic() - self._save_begun_at

    def _tell_save(self, saved_step: int) -> None:
        seconds = time.monotonic() - self._save_begun_at
        self._reporter.note(SaveRecord(self._at_step, saved_step, self._save_halted_seconds, seconds))

    def _rows_seen(self, step: int) -> int:
        return self._before.rows_seen + (step - self._before.step) * self._run.plan.global_batch_rows

    def _progress(self, step: int, *, validated: bool) -> Progress:
        before, seconds = self._before, time.monotonic() - self._started
        return Progress(
            step=step,
            rows_seen=self._rows_seen(step),
            selected_tokens=self._reporter.selected_tokens,
            seconds=before.seconds + seconds,
            rank_seconds=before.rank_seconds + seconds * self._run.world.size,
            skipped_steps=self._reporter.skipped_steps,
            skipped_in_a_row=self._skips.in_a_row,
            selection=self._step.objective.state(),
            backward_cosine=None if self._step.filter_watch is None else self._step.filter_watch.cosine,
            rows_read=self._counts.rows_read,
            recent_losses=self._spikes.losses,
            validation_is_due=not validated,
            extents=before.extents,
        )


def learning_rate(train: TrainSection, tokens: int) -> float:
    """The learning rate of the step that ends when `tokens` targets have been read.

    Rises linearly to `lr` over `warmup_tokens`, then follows `schedule` down to `lr · min_lr_ratio` at `total_tokens`.
    `constant` stays at `lr`.
    """
    if tokens < train.warmup_tokens:
        return train.lr * tokens / train.warmup_tokens
    floor, length_tokens = train.lr * train.min_lr_ratio, train.length_tokens
    remaining_tokens = max(0, length_tokens - tokens)
    # The share of the way from the floor to the peak.
    height = 1.0
    if train.schedule == "wsd":
        height = min(1.0, remaining_tokens / train.decay_tokens)
    elif train.schedule != "constant":
        progress = 1.0 - remaining_tokens / (length_tokens - train.warmup_tokens)
        height = 1.0 - progress if train.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return floor + (train.lr - floor) * height
