"""When a run has gone wrong: too many steps skipped in a row, or a loss far above what it was."""

import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from megaslm.errors import NonFiniteLoss

_LEAST_STEPS_OF_A_LEVEL = 4


class SkipCount:
    """Counts the steps that were skipped in a row."""

    def __init__(self, limit: int, in_a_row: int = 0) -> None:
        """Takes the number of steps at which the run is to stop, and that of the last ones that were skipped."""
        self._limit = limit
        self.in_a_row = in_a_row

    def add(self, step: int, skipped: str | None) -> None:
        """Takes note of a step, and of why it was skipped.

        Raises:
            NonFiniteLoss: it is the last that may be.
        """
        self.in_a_row = 0 if skipped is None else self.in_a_row + 1
        if self.in_a_row >= self._limit:
            raise NonFiniteLoss(
                f"step {step}: skipped as the last of {self.in_a_row} in a row, and guard.max_skipped_steps = "
                f"{self._limit}: {skipped}; lower train.lr, or verify the dataset and the starting weights"
            )


@dataclass(frozen=True)
class Spike:
    """A loss far above those of the steps before. In nats: `loss`, their `mean`, and `deviation`, the standard one."""

    step: int
    loss: float
    mean: float
    deviation: float

    def __str__(self) -> str:
        """As a message has it."""
        return (
            f"step {self.step}: the loss of {self.loss:.4f} lies {self.loss - self.mean:.4f} above the mean of those "
            f"before, {self.mean:.4f}, whose standard deviation is {self.deviation:.4f}"
        )


class SpikeWatch:
    """Judges each loss by the mean and the standard deviation of the last ones that were no spikes.

    A spike stays outside of the window by which the next losses are judged, so that it does not hide them. Where so
    many come one after the other that they would fill an eighth of the window, that is a new level, and they enter it.
    """

    def __init__(self, sigmas: float, window_steps: int, losses: Iterable[float] = ()) -> None:
        """Goes on from what `losses` was."""
        self._sigmas = sigmas
        self._window_steps = window_steps
        self._steps_of_a_level = max(_LEAST_STEPS_OF_A_LEVEL, window_steps // 8)
        self._losses = deque(losses, maxlen=window_steps)
        self._spikes: list[float] = []

    @property
    def losses(self) -> tuple[float, ...]:
        """The losses of the window, oldest first: what a resumed run needs to judge at once."""
        return tuple(self._losses)

    def add(self, step: int, loss: float) -> Spike | None:
        """Judges the loss of a step, in nats; there is no judgement before the window is full."""
        spike = self._judge(step, loss)
        if spike is None:
            self._spikes = []
            self._losses.append(loss)
        else:
            self._spikes.append(loss)
            if len(self._spikes) == self._steps_of_a_level:
                self._losses.extend(self._spikes)
                self._spikes = []
        return spike

    def _judge(self, step: int, loss: float) -> Spike | None:
        if len(self._losses) < self._window_steps:
            return None
        mean = statistics.fmean(self._losses)
        deviation = statistics.pstdev(self._losses, mean)
        return Spike(step, loss, mean, deviation) if loss > mean + self._sigmas * deviation else None
