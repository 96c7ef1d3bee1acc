"""The cost of what a run reports: steps with all sums, marks, reports and log files against steps with none of them.

Steps of the demo's model vary by more than reports cost. Reports cost the same whatever the model, since they depend on
the targets and not on the layers. So the difference is measured in steps of a thin model on as many targets, in many
short blocks in turns, and compared with a step of the demo's model. Equal blocks in the same turns show the noise.
"""

import gc
import os
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from decimal import Decimal
from math import ceil, sqrt
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
from megaslm.model.forward_flops import forward_flops
from megaslm.slm.objective import SelectiveObjective
from megaslm.slm.rule import KeepRatio, Moment, SelectionRule
from megaslm.stream.mixture import Mixture, MixtureStream
from megaslm.training.meters import RunMeters
from megaslm.training.reporting import Reporter
from megaslm.training.run import description_of
from megaslm.training.run_folder import RunFolder
from megaslm.training.step import StepResult, TrainStep
from megaslm.training.training_data import DomainCounts

ROOT = Path(__file__).parents[1]
MOST_RATIO = 1.005
THIN = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_layers": 1}
"""The layers and the head of the thin model, in place of those of the demo's model."""
MEASURED_SECONDS = 100
"""Of the blocks together, about."""
WITH, WITHOUT, AGAIN = "with all that is reported", "without", "without, once more"


class SilentStep(TrainStep):
    """A step that adds up nothing of its selection."""

    def _sums(self, *_: object) -> Tensor:
        return torch.zeros((), device=self.world.device)


class Alternatives:
    """Blocks of as many steps as a report covers, of one model: with all that is reported, and without.

    All steps have the same rows and a learning rate of 0, so that they compute the same.
    """

    def __init__(self, config: RunConfig, world: World, folder: Path) -> None:
        """Log files are written into `folder`."""
        self.every_steps = config.log.every_steps
        steps = Steps(config, world, frequent_and_rare(shape_of(config).vocab_size, world.device))
        self._tokens_per_step = steps.plan.tokens_per_step
        self._rows = [steps.micro_batch()]
        self._steps = 0
        meters = RunMeters(config, steps.plan, world, forward_flops(steps.model_config))
        self._clock = meters.clock
        self._reporter = reporter_in(folder, config, steps, world, meters)
        one, other = (SelectiveObjective(SelectionRule(KeepRatio(Decimal("0.6")))) for _ in range(2))
        facts: dict[str, Any] = {"domain_count": 1, "may_repeat_rows": False, "keeps_graphs": True}
        self._silent = SilentStep(steps.engine, one, world, EOS_ID, **facts)
        self._telling = TrainStep(steps.engine, other, world, EOS_ID, **facts, ends=self._clock.mark)
        self.run = RunFolder(folder)

    def with_all(self) -> None:
        """A block as a run makes it, down to the files and the console."""
        for _ in range(self.every_steps):
            self._clock.mark(None)
            self._clock.mark("data_wait")
            self._reporter.add(self._make(self._telling))
        self._reporter.flush()

    def without(self) -> None:
        """A block of steps alone."""
        for _ in range(self.every_steps):
            self._make(self._silent)

    def close(self) -> None:
        """Closes the log files."""
        self._reporter.close()

    def _make(self, step: TrainStep) -> StepResult:
        self._steps += 1
        return step(self._rows, Moment(self._steps, self._steps * self._tokens_per_step), learning_rate=0.0)


def main() -> None:
    chosen = options(__doc__)
    torch.set_num_threads(1)
    world = join_world()
    rows = 8 if chosen.quick else 64
    demo = with_batch(load(RunConfig, ROOT / "configs" / "demo" / "base.yaml").value, rows, 1)
    thin = demo.model_copy(
        update={"model": demo.model.model_copy(update={"from_scratch": shape_of(demo).model_copy(update=THIN)})}
    )
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        whole = Alternatives(demo, world, Path(folder, "demo"))
        small = Alternatives(thin, world, Path(folder, "thin"))
        blocks = {WITH: small.with_all, WITHOUT: small.without, AGAIN: small.without}
        gc.collect()
        gc.disable()
        whole_times = in_turns({WITHOUT: whole.without}, repetitions=1)
        round_seconds = sum(taken.median for taken in in_turns(blocks, repetitions=1).values())
        times = in_turns(blocks, repetitions=4 if chosen.quick else max(4, int(MEASURED_SECONDS / round_seconds)))
        whole.close()
        small.close()
        told = small.run.metrics.read_bytes().splitlines()
        events = sum(path.stat().st_size for path in small.run.tensorboard.glob("**/events*"))
    of_reports = [line for line in told if line.startswith(b'{"kind": "report"')]
    made = len(told) - len(of_reports)
    demo_seconds = whole_times[WITHOUT].median / demo.log.every_steps

    def of_step(name: str) -> dict[str, str | float | int]:
        of_blocks = zip(times[name].seconds, times[WITHOUT].seconds, strict=True)
        low, middle, high = interval([(mine - bare) / thin.log.every_steps for mine, bare in of_blocks])
        return {
            "step": name,
            "ms, thin model": 1000 * times[name].median / thin.log.every_steps,
            "more, ms": 1000 * middle,
            "95% interval, ms": f"{1000 * low:.3f}–{1000 * high:.3f}",
            "share of a demo's step": middle / demo_seconds,
            "at most": high / demo_seconds,
        }

    found = [of_step(WITH), of_step(AGAIN)]
    files = {
        "metrics.jsonl, bytes per step": sum(map(len, told)) / made,
        "of these reports": sum(map(len, of_reports)) / made,
        "TensorBoard, bytes per step": events / made,
    }
    report(
        f"What does it cost to report? SLM, {rows} rows of 128, a report every {demo.log.every_steps} steps, "
        f"{len(times[WITH].seconds)} blocks of so many steps in turns, one CPU thread, processor time; a step "
        f"of the demo's model (1.26M parameters) without takes {demo_seconds:.3f} s; "
        + "; ".join(f"{name}: {size:.0f}" for name, size in files.items()),
        found,
        [
            Bar(
                "a step of the demo with all reports to one without, at most",
                1 + float(found[0]["at most"]),
                MOST_RATIO,
            )
        ],
        chosen,
    )
    leave_world()


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """The median, between the ends of its 95% interval: order statistics, without an assumption on the noise."""
    ordered, count = sorted(differences), len(differences)
    reach = 0.98 * sqrt(count)
    low, high = max(0, int(count / 2 - reach)), min(count - 1, ceil(count / 2 + reach))
    return ordered[low], median(ordered), ordered[high]


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
