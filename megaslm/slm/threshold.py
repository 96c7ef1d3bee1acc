"""The thresholds of the steps before, for `running` selection and for forecasts."""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from megaslm.slm.keys import HASH_BITS, hash_of
from megaslm.slm.topk import VALUE_BITS, ordered_image, value_of_image

SORT_KEY_BITS = VALUE_BITS + HASH_BITS
NO_THRESHOLD = -1
"""In place of a sort key: the step had nothing to select."""
_WINDOW = 3
_STEPS_TO_BALANCE = 10
# In units of one step's K: a jump is corrected over at most some twenty steps, by at most K/10 per step.
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

    Their median is used: a single outlier does not move it, and a lasting change reaches it at the second step. Targets
    that a threshold selects beyond K are taken back over the steps that follow, so that K are selected on average even
    under a steady drift.
    """

    def __init__(self, state: SelectionState = AT_START) -> None:
        self._thresholds: deque[Tensor] = deque(
            (torch.tensor(threshold) for threshold in state.thresholds), maxlen=_WINDOW
        )
        self._surplus = torch.tensor(state.surplus, dtype=torch.float64)

    def __bool__(self) -> bool:
        return bool(self._thresholds)

    def add(self, threshold: Tensor, surplus: Tensor | None = None) -> None:
        """Adds the threshold of a step, an int64 scalar or `NO_THRESHOLD`, and the surplus where there is one."""
        self._thresholds.append(threshold)
        if surplus is not None:
            self._surplus = surplus

    def surplus_with(self, selected: Tensor, count: Tensor) -> Tensor:
        """The surplus after a step under a threshold that selected `selected` in place of K, over all ranks."""
        surplus = self._surplus.to(count.device, non_blocking=True) + (selected - count) / count.clamp(min=1)
        return surplus.clamp(-_LARGEST_SURPLUS, _LARGEST_SURPLUS)

    def median(self, device: torch.device) -> Tensor:
        """The median of the thresholds (of two, the lower), an int64 scalar; `NO_THRESHOLD` where there is none."""
        thresholds = self._on(device).sort().values
        missing = (thresholds == NO_THRESHOLD).sum()
        middle = (missing + len(thresholds) - 1) // 2
        return thresholds.gather(0, middle[None])[0]

    def spread(self, device: torch.device) -> Tensor:
        """Mean distance of the thresholds' values from their median; a float32 scalar."""
        thresholds = self._on(device)
        there = thresholds != NO_THRESHOLD
        distances = (value_of_sort_key(thresholds) - value_of_sort_key(self.median(device))).abs()
        return distances.where(there, 0.0).sum() / there.sum().clamp(min=1)

    def state(self) -> SelectionState:
        """The argument of `__init__`; waits for the device."""
        thresholds = (
            tuple(int(threshold) for threshold in torch.stack(list(self._thresholds)).tolist())
            if self._thresholds
            else ()
        )
        return SelectionState(thresholds, float(self._surplus))

    def _on(self, device: torch.device) -> Tensor:
        self._thresholds = deque(
            (threshold.to(device, non_blocking=True) for threshold in self._thresholds), maxlen=_WINDOW
        )
        return torch.stack(list(self._thresholds))


def corrected(count: Tensor, valid: Tensor, surplus: Tensor) -> Tensor:
    """How many of the `valid` targets to select so that K = `count` are selected on average; int64 scalar."""
    return torch.minimum(count - (surplus * count / _STEPS_TO_BALANCE).round().to(torch.int64), valid)
