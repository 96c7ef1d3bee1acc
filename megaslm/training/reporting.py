"""From steps on the device to records: one read of the device a report, however many steps it covers."""

import math
import time

import torch
from torch import Tensor

from megaslm.config.plan import BatchPlan
from megaslm.engine.distributed import World
from megaslm.errors import NonFiniteLoss
from megaslm.observe.console import RunConsole
from megaslm.observe.records import MetricsFile, Record, StepRecord
from megaslm.observe.tensorboard import TensorBoard
from megaslm.slm.telemetry import summarise
from megaslm.training.domain_counts import DomainCounts
from megaslm.training.run_folder import RunFolder
from megaslm.training.step import StepResult


class Reporter:
    """Collects steps, checks them, and writes what the first rank has to say."""

    def __init__(
        self,
        run: RunFolder,
        plan: BatchPlan,
        world: World,
        *,
        domains: tuple[str, ...],
        counts: DomainCounts,
        last_step: int,
    ) -> None:
        """Goes on after `last_step`; what is read of each domain is added to `counts`."""
        self.selected_tokens = 0
        self._plan = plan
        self._domains = domains
        self._counts = counts
        self._waiting: list[StepResult] = []
        self._since = time.monotonic()
        self._sinks: list[MetricsFile | TensorBoard] = []
        self._console: RunConsole | None = None
        if world.is_first:
            self._sinks = [
                MetricsFile(run.metrics, last_step=last_step),
                TensorBoard(run.tensorboard, last_step=last_step),
            ]
            self._console = RunConsole(run.path.name, total_steps=plan.total_steps, done_steps=last_step)

    def say(self, line: str) -> None:
        """Prints a line, once."""
        if self._console is not None:
            self._console.say(line)

    def add(self, result: StepResult) -> None:
        """Keeps a step for the next flush."""
        self._waiting.append(result)

    def flush(self) -> None:
        """Reads the waiting steps from the device and writes them.

        Raises:
            NonFiniteLoss: on all ranks, where a step had a loss or a reference loss that is NaN or infinite.
        """
        if not self._waiting:
            return
        numbers: list[list[float]] = torch.stack([_numbers(result) for result in self._waiting]).tolist()
        now = time.monotonic()
        tokens_per_second = len(self._waiting) * self._plan.tokens_per_step / max(1e-9, now - self._since)
        records: list[Record] = []
        for result, (*sums, threshold, norm) in zip(self._waiting, numbers, strict=True):
            summary = summarise(sums)
            if summary.not_finite:
                raise NonFiniteLoss(
                    f"step {result.step}: {summary.not_finite} of {summary.valid} targets have a loss or reference "
                    "loss that is not finite; the run stopped before it was saved: lower train.lr, or verify the "
                    "dataset and the starting weights"
                )
            self.selected_tokens += summary.selected
            self._counts.add(summary.domain_rows)
            records.append(
                StepRecord(
                    step=result.step,
                    tokens=result.step * self._plan.tokens_per_step,
                    loss=summary.selected_loss,
                    all_loss=summary.all_loss,
                    selected_ratio=summary.selected / max(1, summary.valid),
                    learning_rate=result.learning_rate,
                    gradient_norm=norm,
                    tokens_per_second=tokens_per_second,
                    threshold=None if math.isnan(threshold) else threshold,
                    excess_quantiles=summary.excess_quantiles,
                    domain_ratio={self._domains[number]: ratio for number, ratio in summary.domain_ratio.items()},
                    domain_tokens=self._counts.tokens,
                    domain_passes=self._counts.passes,
                )
            )
        self._waiting = []
        self.write(records)

    def write(self, records: list[Record]) -> None:
        """Writes records; the time they took to make is not the steps'."""
        for sink in self._sinks:
            sink.write(records)
        if self._console is not None:
            self._console.show(records)
        self._since = time.monotonic()

    def close(self) -> None:
        """Closes files and the progress bar."""
        for sink in self._sinks:
            sink.close()
        if self._console is not None:
            self._console.close()


def _numbers(result: StepResult) -> Tensor:
    """All that a step has to say in one vector, so that a report reads the device once; float64."""
    return torch.cat([result.sums, torch.stack([result.threshold, result.gradient_norm]).double()])
