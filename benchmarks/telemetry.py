"""The cost of what a run reports: a step with all sums, marks, reports and log files against one with none of them.

Steps vary by more than reports cost. So the time of the reports themselves is measured too, within the same steps.
"""

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness.report import Bar, options, report
from harness.steps import EOS_ID, Steps, frequent_and_rare, shape_of, with_batch
from harness.timing import in_turns
from torch import Tensor

from megaslm.config.load import load
from megaslm.config.schema import RunConfig
from megaslm.engine.distributed import World, join_world, leave_world
from megaslm.model.flops import forward_flops
from megaslm.slm.objective import SelectiveObjective
from megaslm.slm.rule import KeepRatio, Moment, SelectionRule
from megaslm.stream.mixture import Mixture, MixtureStream
from megaslm.training.meters import RunMeters
from megaslm.training.phases import Phase
from megaslm.training.reporting import Reporter
from megaslm.training.run import description_of
from megaslm.training.run_folder import RunFolder
from megaslm.training.step import StepResult, TrainStep
from megaslm.training.training_data import DomainCounts

ROOT = Path(__file__).parents[1]
EVERY_STEPS = 5
MOST = 0.005


class SilentStep(TrainStep):
    """A step that adds up nothing of its selection."""

    def _sums(self, *_: object) -> Tensor:
        return torch.zeros((), device=self.world.device)


class TimedStep(TrainStep):
    """A step that notes the processor time of its sums."""

    def _sums(self, *arguments: Any) -> Tensor:
        with SPENT:
            return super()._sums(*arguments)


class Spent:
    """Processor seconds within its contexts."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._begun = 0.0

    def __enter__(self) -> None:
        self._begun = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.process_time() - self._begun


SPENT = Spent()


def main() -> None:
    chosen = options(__doc__)
    torch.set_num_threads(1)
    world = join_world()
    rows = 8 if chosen.quick else 64
    config = load(RunConfig, ROOT / "configs" / "demo" / "base.yaml").value
    draw_tokens = frequent_and_rare(shape_of(config).vocab_size, world.device)
    steps = Steps(with_batch(config, rows, 1), world, draw_tokens)
    batches = [[steps.micro_batch()] for _ in range(EVERY_STEPS)]
    number = 0

    def train(step: TrainStep, told: Callable[[StepResult], None]) -> None:
        nonlocal number
        for batch in batches:
            number += 1
            told(step(batch, Moment(number, number * steps.plan.tokens_per_step), learning_rate=1e-6))

    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere:
        meters = RunMeters(config, steps.plan, world, forward_flops(steps.model_config))
        reporter = reporter_in(Path(folder), config, steps, world, meters)
        of_reports: list[float] = []

        def end(phase: Phase) -> None:
            with SPENT:
                meters.clock.mark(phase)

        facts = {"domain_count": 1, "may_repeat_rows": False, "keeps_graphs": True}
        one, other = (SelectiveObjective(SelectionRule(KeepRatio(Decimal("0.6")))) for _ in range(2))
        silent = SilentStep(steps.engine, one, world, EOS_ID, **facts)
        telling = TimedStep(steps.engine, other, world, EOS_ID, **facts, ends=end)

        def with_all() -> None:
            before = SPENT.seconds
            with SPENT:
                meters.clock.mark(None)
            train(telling, reporter.add)
            with redirect_stdout(nowhere), SPENT:
                reporter.flush()
            of_reports.append((SPENT.seconds - before) / EVERY_STEPS)

        alternatives = {
            "with all that is reported": with_all,
            "without": lambda: train(silent, lambda result: None),
        }
        times = in_turns(alternatives, repetitions=3 if chosen.quick else 11, clock=time.process_time)
        run = RunFolder(Path(folder))
        told = run.metrics.read_bytes().splitlines()
        reports = [line for line in told if line.startswith(b'{"kind": "report"')]
        events = sum(path.stat().st_size for path in run.tensorboard.glob("**/events*"))
        reporter.close()
    made = len(told) - len(reports)
    full, bare = times["with all that is reported"], times["without"]
    share = median(of_reports[1:]) / (bare.median / EVERY_STEPS)
    report(
        f"What does it cost to report? The demo's model (1.26M parameters), SLM, {rows} rows of 128, a report every "
        f"{EVERY_STEPS} steps, one CPU thread, processor time",
        [
            {
                "step": name,
                "seconds": taken.median / EVERY_STEPS,
                "to without": taken.over(bare),
                "from – to": taken.spread(bare),
                "of these sums, marks and reports": median(of_reports[1:]) if taken is full else 0.0,
                "metrics.jsonl, bytes per step": sum(map(len, told)) / made if taken is full else 0.0,
                "of these reports": sum(map(len, reports)) / made if taken is full else 0.0,
                "TensorBoard, bytes per step": events / made if taken is full else 0.0,
            }
            for name, taken in times.items()
        ],
        [Bar("processor time of sums, marks and reports, share of the step", share, MOST)],
        chosen,
    )
    leave_world()


def reporter_in(folder: Path, config: RunConfig, steps: Steps, world: World, meters: RunMeters) -> Reporter:
    """A reporter that writes into the folder."""
    stream = MixtureStream(Path("noise"), None, 1_000_000, 0, None)
    return Reporter(
        RunFolder(folder),
        steps.plan,
        world,
        domains=("noise",),
        counts=DomainCounts(Mixture((stream,), ("noise",)), steps.plan.seq_len, rows_read={}),
        meters=meters,
        description=description_of(config),
        log=config.log,
        last_step=0,
        skipped_steps=0,
        selected_tokens=0,
        validation_is_due=False,
    )


if __name__ == "__main__":
    main()
