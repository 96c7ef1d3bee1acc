"""How quickly this rank does what is its own: no time counts in which it waits for another."""

import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Self, TypeVar

import torch
from torch import Tensor, nn

from megaslm.engine.distributed import World, all_gather
from megaslm.engine.head_stopwatch import HeadStopwatch
from megaslm.engine.metronome import Metronome

T = TypeVar("T")


@dataclass(frozen=True)
class Pace:
    """One rank's, over the steps of a report."""

    head_seconds: float
    """A unit of work in the loss head takes so long, in the quickest of the steps; NaN where none was timed."""
    loading_seconds: float
    """It waits so long for its own rows, in the mean of the steps."""
    step_seconds: float
    """A step takes so long, in the mean; nearly the same on all ranks, which wait for one another."""
    halted_share: float
    """The share of the time in which the host did not let it run."""

    @classmethod
    def from_tensor(cls, values: Tensor) -> list[Self]:
        """Those of all ranks, of (ranks, 4)."""
        return [cls(*row) for row in values.tolist()]


class PaceMeter:
    """Takes the times of one rank."""

    def __init__(self, head: nn.Module, world: World) -> None:
        """`head` is the model's, once DeepSpeed has wrapped the model."""
        self._world = world
        self._head = HeadStopwatch(head, world.device)
        self._metronome = Metronome()
        self._steps = 0
        self._loading_seconds = 0.0
        self._step_seconds = 0.0
        self._step_begun_at: float | None = None

    def loading(self, micro_batches: Iterator[T]) -> Iterator[T]:
        """The same, timed. With the first of a step the step begins."""
        while True:
            asked_at = time.perf_counter()
            if self._step_begun_at is None:
                self._step_begun_at = asked_at
            micro_batch = next(micro_batches, None)
            self._loading_seconds += time.perf_counter() - asked_at
            if micro_batch is None:
                return
            yield micro_batch

    def end_step(self) -> None:
        """An optimiser step is over; reads nothing from the device."""
        self._head.end_step()
        self._steps += 1
        if self._step_begun_at is not None:
            self._step_seconds += time.perf_counter() - self._step_begun_at
            self._step_begun_at = None

    def share(self) -> list[Pace]:
        """The paces of all ranks since the last call, in rank order; called on all ranks together."""
        steps = max(1, self._steps)
        own = Pace(
            head_seconds=self._head.read(),
            loading_seconds=self._loading_seconds / steps,
            step_seconds=self._step_seconds / steps,
            halted_share=self._metronome.halted_share(),
        )
        self._steps, self._loading_seconds, self._step_seconds = 0, 0.0, 0.0
        return Pace.from_tensor(all_gather(torch.tensor(astuple(own), dtype=torch.float64, device=self._world.device)))

    def close(self) -> None:
        """Ends what runs beside the training, and leaves the head as it was."""
        self._metronome.stop()
        self._head.close()
