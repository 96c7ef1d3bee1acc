"""What a run measures of itself between two reports: times of phases, use of the device, memory."""

import time
from collections.abc import Iterable, Sequence

import psutil
import torch

from megaslm.config.plan import BatchPlan
from megaslm.config.schema import RunConfig
from megaslm.engine.distributed import World
from megaslm.health.host_facts import resident_bytes
from megaslm.model.flops import device_name, peak_flops
from megaslm.model.forward_flops import FORWARD_AND_BACKWARD, ForwardFlops
from megaslm.model.load import choose_precision
from megaslm.observe.records import ReportRecord
from megaslm.slm.telemetry import SelectionSummary
from megaslm.training.phases import PhaseClock
from megaslm.training.probe_selection import ratio_at


class RunMeters:
    """The meters of one rank."""

    def __init__(self, config: RunConfig, plan: BatchPlan, world: World, flops: ForwardFlops) -> None:
        """Begins with the start of this process; see `resume`."""
        self.clock = PhaseClock(world.device)
        self._config, self._plan, self._world, self._flops = config, plan, world, flops
        precision = choose_precision(config.model.precision, world.device)
        self._peak_flops = peak_flops(device_name(world.device), precision)
        self._begun_at = psutil.Process().create_time()
        self._seconds_in_steps = 0.0

    def resume(self, before: ReportRecord | None) -> None:
        """Continues after the last report of an earlier attempt, if there is one."""
        if before is not None:
            self._begun_at, self._seconds_in_steps = before.begun_at, before.seconds_in_steps

    def report(
        self,
        step: int,
        summaries: Sequence[SelectionSummary],
        *,
        selected_tokens: int,
        tokens_per_second: float,
        second_pass_ratio: float,
    ) -> ReportRecord:
        """The report on the steps up to `step`, one summary each. Waits for the device."""
        seconds = self.clock.read()
        self._seconds_in_steps += sum(seconds.values())
        asked = ratio_at(self._config, (step - 1) * self._plan.tokens_per_step)
        selected = _sums(summary.position_selected for summary in summaries)
        valid = _sums(summary.position_valid for summary in summaries)
        tokens_read = len(summaries) * self._plan.tokens_per_step
        attended = sum(summary.attended for summary in summaries) / tokens_read
        return ReportRecord(
            step=step,
            tokens=step * self._plan.tokens_per_step,
            steps=len(summaries),
            selected_tokens=selected_tokens,
            keep_ratio=None if asked is None else float(asked),
            position_ratio=[_short(part / of) if of else None for part, of in zip(selected, valid, strict=True)],
            excess_counts=_sums(summary.excess_counts for summary in summaries if summary.excess_counts),
            phase_seconds={phase: _short(total / len(summaries)) for phase, total in seconds.items()},
            mfu=self._mfu(tokens_per_second, self._plan.seq_len / 2),
            mfu_of_documents=self._mfu(tokens_per_second, attended),
            device_memory_bytes=_device_memory_bytes(self._world.device),
            host_memory_bytes=resident_bytes("VmHWM"),
            begun_at=self._begun_at,
            seconds_in_steps=_short(self._seconds_in_steps),
            effective_time_ratio=_short(self._seconds_in_steps / max(1e-9, time.time() - self._begun_at)),
            second_pass_ratio=_short(second_pass_ratio),
        )

    def _mfu(self, tokens_per_second: float, attended: float) -> float | None:
        """Where a token attends to `attended` tokens on average. Second forward passes of a step do not count."""
        if self._peak_flops is None:
            return None
        flops_per_second = FORWARD_AND_BACKWARD * self._flops.attending(attended) * tokens_per_second
        return flops_per_second / (self._world.size * self._peak_flops)


def _short(number: float) -> float:
    """Six places: microseconds, millionths. A line of metrics.jsonl is read by people, too."""
    return round(number, 6)


def _sums(counts: Iterable[Sequence[int]]) -> list[int]:
    """The sums of equally long rows, column by column."""
    return [sum(column) for column in zip(*counts, strict=True)]


def _device_memory_bytes(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
