"""The times of a step's phases, measured without making the host wait for the device."""

import time
from itertools import pairwise
from typing import Literal

import torch

Phase = Literal["data_wait", "selection", "forward", "backward", "optimizer", "other"]
"""`data_wait`: until the rows are there. `selection`: what is selected before the passes that train; a selection that
the loss head makes is part of `forward`. `backward` and `forward` contain DeepSpeed's collectives, and `optimizer` the
norm of the gradient, the update and its collectives. `other`: the sums that a step reports."""


class PhaseClock:
    """Divides the time of steps into phases: by the host's clock on a CPU, by CUDA events in the stream on a GPU.

    On a GPU the host runs ahead of the device. So a wait for data counts only where the device waits, too.
    """

    def __init__(self, device: torch.device) -> None:
        """Measures nothing before the first mark."""
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[Phase | None, float | torch.cuda.Event]] = []

    def mark(self, phase: Phase | None) -> None:
        """Ends a phase: the time since the last mark belongs to it. None at the beginning of a step: to no phase."""
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((phase, event))
        else:
            self._marks.append((phase, time.perf_counter()))

    def read(self) -> dict[str, float]:
        """Seconds of each phase since the last call. Waits for the device."""
        if self._on_gpu:
            torch.cuda.synchronize()
        seconds: dict[str, float] = {}
        for (_, begun), (phase, ended) in pairwise(self._marks):
            if phase is not None:
                seconds[phase] = seconds.get(phase, 0.0) + _seconds_between(begun, ended)
        self._marks.clear()
        return seconds


def untimed(phase: Phase) -> None:
    """Measures nothing."""


def _seconds_between(begun: float | torch.cuda.Event, ended: float | torch.cuda.Event) -> float:
    if isinstance(begun, float) and isinstance(ended, float):
        return ended - begun
    assert isinstance(begun, torch.cuda.Event), "one clock has marks of one kind"
    assert isinstance(ended, torch.cuda.Event), "one clock has marks of one kind"
    return float(begun.elapsed_time(ended)) / 1000.0
