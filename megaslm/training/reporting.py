"""Turns steps on the device into records. A report reads the device once, however many steps it covers."""

import math
import time
from collections.abc import Sequence
from functools import partial
from statistics import fmean

import torch
from torch import Tensor

from megaslm.config.operation import LogSection
from megaslm.config.plan import BatchPlan
from megaslm.engine.distributed import World
from megaslm.observe.console import RunConsole
from megaslm.observe.records import Record, SkippedRecord, StepRecord, last_report
from megaslm.observe.run_description import RunDescription
from megaslm.observe.run_log import RunLog
from megaslm.observe.tracker import Tracker
from megaslm.slm.telemetry import SelectionSummary, summarise
from megaslm.training.meters import RunMeters
from megaslm.training.run_folder import RunFolder
from megaslm.training.step import StepResult
from megaslm.training.training_data import DomainCounts


class Reporter:
    """Collects steps. The first rank writes their records."""

    def __init__(
        self,
        run: RunFolder,
        plan: BatchPlan,
        world: World,
        *,
        domains: tuple[str, ...],
        counts: DomainCounts,
        meters: RunMeters,
        description: RunDescription,
        log: LogSection,
        last_step: int,
        skipped_steps: int,
        selected_tokens: int,
        validation_is_due: bool,
    ) -> None:
        """Continues after `last_step`; `skipped_steps` and `selected_tokens` are the counts up to it.

        The rows read of each domain are added to `counts`. If `validation_is_due`, that of `last_step` is made again.
        """
        self.selected_tokens = selected_tokens
        """Targets trained on in the whole run so far, over all ranks."""
        self.skipped_steps = skipped_steps
        """Skipped steps of the whole run so far."""
        self._name = run.path.name
        self._plan = plan
        self._domains = domains
        self._counts = counts
        self._meters = meters
        self._waiting: list[StepResult] = []
        self._notes: list[Record] = []
        self._written: list[StepRecord] = []
        self._since = time.monotonic()
        self._has_warned = False
        self._log: RunLog | None = None
        if world.is_first:
            console = RunConsole(run.path.name, total_steps=plan.total_steps, done_steps=last_step)
            meters.resume(last_report(run.metrics, last_step))
            self._log = RunLog(
                console,
                run.metrics,
                run.tensorboard,
                last_step=last_step,
                validation_is_due=validation_is_due,
                tokens_per_step=plan.tokens_per_step,
                description=description,
                open_tracker=None
                if log.tracker is None
                else partial(Tracker, log.tracker, project=log.project, run=run.path, description=description),
            )

    def say(self, line: str) -> None:
        """Prints a line, on the first rank only."""
        if self._log is not None:
            self._log.say(line)

    def add(self, result: StepResult) -> None:
        """Keeps a step for the next flush. A skipped step may be the last one, so it is written at once."""
        self._waiting.append(result)
        if self._log is not None:
            self._log.at_step(result.step)
        if result.skipped is not None:
            self._write_waiting()

    def flush(self) -> list[StepRecord]:
        """Reads the waiting steps from the device and writes them.

        Returns:
            The steps since the last flush that were not skipped; the same on all ranks.
        """
        if self._waiting:
            self._write_waiting()
        written, self._written = self._written, []
        return written

    def write(self, records: Sequence[Record]) -> None:
        """Writes records. The time since the last write does not count as time of the next steps."""
        if self._log is not None:
            self._log.write(records)
        self._since = time.monotonic()

    def alert(self, title: str, text: str) -> None:
        """Sends an alert through the tracker of the run, if it has one."""
        if self._log is not None:
            self._log.alert(f"{self._name}: {title}", text)

    def note(self, record: Record) -> None:
        """Keeps a record of the current step for the next report, so that steps never decrease in the log."""
        self._notes.append(record)

    def sync(self) -> None:
        """Waits until all records are on disk, so that none before a checkpoint is missing."""
        if self._log is not None:
            self._log.sync()

    def close(self) -> None:
        """Closes files and the progress bar."""
        if self._log is not None:
            self._log.write(self._notes)
            self._log.close()

    def _write_waiting(self) -> None:
        numbers: list[list[float]] = torch.stack([_numbers(result) for result in self._waiting]).tolist()
        seconds = max(1e-9, time.monotonic() - self._since)
        tokens_per_second = len(self._waiting) * self._plan.tokens_per_step / seconds
        records: list[Record] = []
        summaries: list[SelectionSummary] = []
        for result, (*sums, threshold, norm) in zip(self._waiting, numbers, strict=True):
            summary = summarise(sums)
            summaries.append(summary)
            self.selected_tokens += summary.selected
            self._counts.add(summary.domain_rows)
            if result.skipped is None:
                self._warn_of_not_finite(result, summary)
                records.append(self._record(result, summary, threshold, norm, tokens_per_second))
            else:
                self.skipped_steps += 1
                self.alert("skipped step", f"step {result.step}: {result.skipped}")
                records.append(
                    SkippedRecord(result.step, self._tokens(result), result.skipped, skipped_steps=self.skipped_steps)
                )
        self._written += [record for record in records if isinstance(record, StepRecord)]
        records.append(
            self._meters.report(
                self._waiting[-1].step,
                summaries,
                selected_tokens=self.selected_tokens,
                tokens_per_second=tokens_per_second,
                second_pass_ratio=fmean(result.second_pass_ratio for result in self._waiting),
            )
        )
        self._waiting = []
        notes, self._notes = self._notes, []
        self.write(sorted([*records, *notes], key=lambda record: record.step))

    def _tokens(self, result: StepResult) -> int:
        return result.step * self._plan.tokens_per_step

    def _record(
        self, result: StepResult, summary: SelectionSummary, threshold: float, norm: float, tokens_per_second: float
    ) -> StepRecord:
        return StepRecord(
            step=result.step,
            tokens=self._tokens(result),
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
            mean_weight=summary.mean_weight,
            backward_cosine=result.backward_cosine,
        )

    def _warn_of_not_finite(self, result: StepResult, summary: SelectionSummary) -> None:
        """Warns once. Such a step is not skipped: the losses of its selected targets are finite."""
        if summary.not_finite and not self._has_warned:
            self._has_warned = True
            self.say(
                f"warning: step {result.step}: {summary.not_finite} of {summary.valid} targets have a loss or "
                "reference loss that is NaN or infinite; the step does not depend on them; this warning comes once"
            )


def _numbers(result: StepResult) -> Tensor:
    """All values of a step in one float64 vector, so that a report reads the device once."""
    return torch.cat([result.sums, torch.stack([result.threshold, result.gradient_norm]).double()])
