"""The thresholds of the steps before, for `running` selection and for forecasts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megaslm.slm.keys import HASH_BITS, hash_of
from megaslm.slm.topk import VALUE_BITS, ordered_image, value_of_image

SORT_KEY_BITS = VALUE_BITS + HASH_BITS
NO_THRESHOLD = -1
"""In place of a sort key: the step had nothing to select."""
EXACT_STEPS = 3
"""Steps that `running` selects exactly before it forecasts. The first updates change the losses the most."""
_WINDOW = 6
_MEDIAN_OF = 3
"""Of two thresholds, `Tensor.median` is the lower."""
# In units of a usual change from step to step. Trainings on real text stay below; a step of garbage does not.
_LARGEST_DISTANCE = 4.0
_STEPS_TO_BALANCE = 2
# In units of one step's K: a jump is corrected over some five steps, by at most K/2 per step.
_LARGEST_SURPLUS = 1.0


def sort_keys_of(values: Tensor, keys: Tensor) -> Tensor:
    """(value, hash of key) as one integer of the same order, which distinguishes equal values; int64 in [0, 2^63)."""
    return (ordered_image(values) << HASH_BITS) | hash_of(keys)


def value_of_sort_key(sort_key: Tensor) -> Tensor:
    """The float32 value in a sort key."""
    return value_of_image(sort_key >> HASH_BITS)


@dataclass(frozen=True)
class SelectionState:
    """What a resumed run must know of the steps before, equal on all ranks.

    `thresholds`: sort keys of the last steps, oldest first. `surplus`: how many targets beyond K steps under a
    threshold have selected, as a fraction of K.
    """

    thresholds: tuple[int, ...] = ()
    surplus: float = 0.0


AT_START = SelectionState()


class RecentThresholds:
    """The thresholds of the last steps, as sort keys, kept on the device.

    The last one is the forecast of the next. If it is an outlier, the median of the last three is: one strange step
    does not move the forecast, and a lasting change reaches it at the second step. Of the targets that a forecast
    selects beyond K, half are taken back in the next step, so that K are selected on average even under a drift.
    """

    def __init__(self, state: SelectionState = AT_START) -> None:
        self._thresholds = torch.empty(0, dtype=torch.int64)
        self._surplus = torch.tensor(state.surplus, dtype=torch.float64)
        for threshold in state.thresholds:
            self.add(torch.tensor(threshold))

    def __len__(self) -> int:
        return len(self._thresholds)

    def add(self, threshold: Tensor, surplus: Tensor | None = None) -> None:
        """Adds the threshold of a step, an int64 scalar or `NO_THRESHOLD`, and the surplus where there is one.

        A step without a threshold repeats the one before it. With none before it, it takes the next one.
        """
        steps = torch.cat([self._thresholds.to(threshold.device, non_blocking=True), threshold[None]])[-_WINDOW:]
        missing = steps == NO_THRESHOLD
        nearest = steps[-2:].where(~missing[-2:], steps[-2:].amax())
        self._thresholds = torch.cat([steps[:-2].where(~missing[:-2], nearest[-1]), nearest])
        if surplus is not None:
            self._surplus = surplus

    def surplus_with(self, selected: Tensor, count: Tensor) -> Tensor:
        """The surplus after a step under a threshold that selected `selected` in place of K, over all ranks."""
        surplus = self._surplus.to(count.device, non_blocking=True) + (selected - count) / count.clamp(min=1)
        return surplus.clamp(-_LARGEST_SURPLUS, _LARGEST_SURPLUS)

    def forecast(self, device: torch.device) -> Tensor:
        """The sort key from which to select in the next step, an int64 scalar; `NO_THRESHOLD` where there is none.

        It is the last threshold. Where that lies further from the median of the last three than four times the usual
        change from one threshold to the next, it is this median.
        """
        thresholds = self._thresholds.to(device, non_blocking=True)
        values = value_of_sort_key(thresholds)
        changes = values.diff().abs().sort().values
        if len(changes) == 0:
            return thresholds[-1]
        median = thresholds[-_MEDIAN_OF:].median()
        is_outlier = (values[-1] - value_of_sort_key(median)).abs() > _LARGEST_DISTANCE * changes[len(changes) // 2]
        return median.where(is_outlier, thresholds[-1])

    def spread(self, device: torch.device) -> Tensor:
        """Mean distance of the last three thresholds' values from their median; a float32 scalar."""
        values = value_of_sort_key(self._thresholds[-_MEDIAN_OF:].to(device, non_blocking=True))
        return (values - values.median()).abs().mean()

    def state(self) -> SelectionState:
        """The argument of `__init__`; waits for the device."""
        return SelectionState(tuple(self._thresholds.tolist()), float(self._surplus))


def corrected(count: Tensor, valid: Tensor, surplus: Tensor) -> Tensor:
    """How many of the `valid` targets to select so that K = `count` are selected on average; int64 scalar."""
    return torch.minimum(count - (surplus * count / _STEPS_TO_BALANCE).round().to(torch.int64), valid)
