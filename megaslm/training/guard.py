"""Guards of a run: too many skipped steps in a row end it, a loss spike rolls it back.

A roll-back returns to the last checkpoint before the spike and skips the data that was read since.
"""

import statistics
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from megaslm.engine.distributed import on_first_rank
from megaslm.errors import LossSpike, NonFiniteLoss
from megaslm.stream.order import Extent
from megaslm.training.checkpoints.rollbacks import NotedRollBack, read_roll_backs, since_roll_backs, write_roll_backs
from megaslm.training.checkpoints.store import Resumed, complete_checkpoints, remove_checkpoint, resume
from megaslm.training.run import TrainingRun

_LEAST_STEPS_OF_A_LEVEL = 4
_MOST_FROM_ONE_CHECKPOINT = 3


class SkipCount:
    """Counts the steps that were skipped in a row."""

    def __init__(self, limit: int, in_a_row: int = 0) -> None:
        """The run stops at `limit` skipped steps in a row; `in_a_row` is the count so far."""
        self._limit = limit
        self.in_a_row = in_a_row

    def add(self, step: int, skipped: str | None) -> None:
        """Counts a step; `skipped` is why it was skipped, None if it was not.

        Raises NonFiniteLoss where the limit is reached.
        """
        self.in_a_row = 0 if skipped is None else self.in_a_row + 1
        if self.in_a_row >= self._limit:
            raise NonFiniteLoss(
                f"step {step}: skipped as the last of {self.in_a_row} in a row, and guard.max_skipped_steps = "
                f"{self._limit}: {skipped}; lower train.lr, or verify the dataset and the starting weights"
            )


@dataclass(frozen=True)
class Spike:
    """A loss far above those of earlier steps. `loss`, and their `mean` and standard `deviation`, are in nats."""

    step: int
    loss: float
    mean: float
    deviation: float

    def __str__(self) -> str:
        """The text for messages."""
        return (
            f"step {self.step}: the loss of {self.loss:.4f} lies {self.loss - self.mean:.4f} above the mean of those "
            f"before, {self.mean:.4f} (standard deviation {self.deviation:.4f})"
        )


class SpikeWatch:
    """Judges each loss by the mean and the standard deviation of a window of recent losses that were no spikes.

    A spike does not enter the window, so that it does not hide the next ones. Consecutive spikes that would fill an
    eighth of the window are a new level: they enter it.
    """

    def __init__(self, sigmas: float, window_steps: int, losses: Iterable[float] = ()) -> None:
        """`losses` is the window of an earlier attempt."""
        self._sigmas = sigmas
        self._window_steps = window_steps
        self._steps_of_a_level = max(_LEAST_STEPS_OF_A_LEVEL, window_steps // 8)
        self._losses = deque(losses, maxlen=window_steps)
        self._spikes: list[float] = []

    @property
    def losses(self) -> tuple[float, ...]:
        """The losses of the window, oldest first. A resumed run needs them to judge at once."""
        return tuple(self._losses)

    def add(self, step: int, loss: float) -> Spike | None:
        """Judges the loss of a step, in nats. None if it is no spike, or before the window is full."""
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


@dataclass(frozen=True)
class RollBack:
    """A run's request to roll back after a spike."""

    spike: Spike
    step: int
    """The current step, at or after the spike."""
    rows_seen: int
    """The data position to resume at."""
    extents: tuple[Extent, ...]
    """The number of rows, from which epoch on."""


def roll_back(run: TrainingRun, asked: RollBack, say: Callable[[str], None]) -> Resumed:
    """Rolls the run back to its newest intact checkpoint from before the spike; called on all ranks.

    Checkpoints from the spike's step on are removed: those steps are made again, with other rows.

    Raises LossSpike where there is no such checkpoint, or the run has rolled back to it too often.
    """
    on_first_rank(lambda: _forget_since(run.folder.checkpoints, asked.spike))
    resumed = resume(run.folder.checkpoints, run.engine.state(), run.world, say)
    this = NotedRollBack(resumed.progress.step, asked.rows_seen, str(asked.spike), asked.extents)
    on_first_rank(lambda: _note(run.folder.path, this))
    say(
        f"warning: {asked.spike}; the run goes back from step {asked.step} to step {resumed.progress.step} and skips "
        f"the {asked.rows_seen - resumed.progress.rows_seen:,} rows that were read since"
    )
    return replace(resumed, progress=replace(this.applied_to(resumed.progress), validation_is_due=False))


def after_rollbacks(run: TrainingRun, resumed: Resumed) -> Resumed:
    """Restores the data position of a run that was interrupted between a roll-back and the next checkpoint."""
    noted = on_first_rank(lambda: read_roll_backs(run.folder.path))
    return replace(resumed, progress=since_roll_backs(resumed.progress, noted))


def _forget_since(checkpoints: Path, spike: Spike) -> None:
    found = complete_checkpoints(checkpoints)
    if not any(checkpoint.step < spike.step for checkpoint in found):
        raise LossSpike(
            f"{spike}; guard.on_spike = rollback: there is no checkpoint from before to go back to; lower train.lr or "
            "checkpoint.every_tokens"
        )
    for checkpoint in found:
        if checkpoint.step >= spike.step:
            remove_checkpoint(checkpoint.folder)


def _note(run: Path, this: NotedRollBack) -> None:
    noted = [*read_roll_backs(run), this]
    times = sum(earlier.checkpoint_step == this.checkpoint_step for earlier in noted)
    if times > _MOST_FROM_ONE_CHECKPOINT:
        raise LossSpike(
            f"{this.spike}; the run has gone back to step {this.checkpoint_step} {times - 1} times already: the rows "
            "are not what makes the loss rise; lower train.lr, or set guard.on_spike = warn"
        )
    write_roll_backs(run, noted)
