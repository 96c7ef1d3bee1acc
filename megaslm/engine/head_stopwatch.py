"""The time that the loss head takes: of all parts of a step the one that no other rank can hold up.

Nearly everything else under ZeRO-3 contains collectives, in which the quick wait for the slow. The head's weight is
gathered before its forward pass begins; only a choice by loss calls collectives within, and there the watch is stopped.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from megaslm.slm.choice import ByLoss, Choice, Every, Forecast, Known, Selected

Mark = float | torch.cuda.Event
"""A moment: in seconds of the time that processors have worked for this process, which leaves out what other programs
take from it, or in a GPU's stream, where nobody waits for it."""


class HeadStopwatch:
    """Follows a model's head through training; passes in evaluation mode do not count."""

    def __init__(self, head: nn.Module, device: torch.device) -> None:
        """Attaches itself. To be called once DeepSpeed has wrapped the model: its hooks have to run before these."""
        self._on_gpu = device.type == "cuda"
        self._begun: Mark | None = None
        self._step = _Step()
        self._running: deque[_Step] = deque()
        self._seconds_by_work: list[float] = []
        self._hooks = (head.register_forward_pre_hook(self._begin), head.register_forward_hook(self._end))

    def end_step(self) -> None:
        """The optimiser step is over; nothing waits for the device."""
        self._running.append(self._step)
        self._step = _Step()
        while self._running and self._running[0].is_over():
            step = self._running.popleft()
            if step.work:
                self._seconds_by_work.append(step.seconds() / step.work)

    def read(self) -> float:
        """Seconds a unit of work, in the quickest of the steps since the last call; NaN where none was timed.

        The unit is the same on all ranks. The quickest, because it is the least disturbed by what else the host does.
        """
        found = min(self._seconds_by_work, default=float("nan"))
        self._seconds_by_work = []
        return found

    def close(self) -> None:
        """Detaches itself from the head."""
        for hook in self._hooks:
            hook.remove()

    def _begin(self, head: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not head.training or len(arguments) < 2:
            return None
        hidden, targets, choice = (*arguments, None)[:3]
        self._step.work += _work_before_choosing(choice, len(targets))
        self._begun = self._mark()
        if choice is None or isinstance(choice, Every | Known):
            return None
        return hidden, targets, _Interrupting(choice, self._stop)

    def _end(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._begun is not None:
            self._step.passes.append((self._begun, self._mark()))
            self._begun = None

    def _mark(self) -> Mark:
        if not self._on_gpu:
            return time.process_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass
class _Step:
    """The passes of one optimiser step through the head."""

    work: int = 0
    passes: list[tuple[Mark, Mark]] = field(default_factory=list)

    def is_over(self) -> bool:
        """Whether the device has come to the end of them."""
        last = self.passes[-1][1] if self.passes else 0.0
        return isinstance(last, float) or last.query()

    def seconds(self) -> float:
        """How long they took, the device being past their end."""
        return sum(_seconds_between(begun, ended) for begun, ended in self.passes)


class _Interrupting:
    """A choice by loss that stops the watch before it begins to talk to other ranks."""

    def __init__(self, choice: ByLoss, stop: Callable[[], None]) -> None:
        self._choice = choice
        self._stop = stop

    @property
    def forecast(self) -> Forecast | None:
        return self._choice.forecast

    @property
    def mask(self) -> Tensor:
        return self._choice.mask

    @property
    def unrankable(self) -> Tensor:
        return self._choice.unrankable

    def __call__(self, losses: Tensor) -> Selected:
        self._stop()
        return self._choice(losses)


def _work_before_choosing(choice: Choice | None, rows: int) -> int:
    """Matrix products over one row each, as far as they differ among ranks; see `megaslm.slm.token_loss`."""
    match choice:
        case Every():
            return 3 * rows
        case Known():
            return 3 * len(choice.rows) + len(choice.rest)
        case _:
            return rows


def _seconds_between(begun: Mark, ended: Mark) -> float:
    if isinstance(begun, torch.cuda.Event):
        assert isinstance(ended, torch.cuda.Event)
        return float(begun.elapsed_time(ended)) / 1000.0
    assert isinstance(ended, float)
    return ended - begun
