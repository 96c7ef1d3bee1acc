"""The cuts of the steps before: the threshold of `running` selection, and the forecast of any other."""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from megaslm.slm.keys import HASH_BITS, hash_of
from megaslm.slm.topk import SCORE_BITS, ordered_image, score_of_image

RANK_BITS = SCORE_BITS + HASH_BITS
NOTHING_CUT = -1
"""In the place of a rank: the step had nothing to select."""
_WINDOW = 3
_STEPS_TO_BALANCE = 10
# One step's K: after a jump the balance is not sought for longer than some twenty steps, nor by more than K/10 a step.
_LARGEST_SURPLUS = 1.0


def ranks_of(scores: Tensor, keys: Tensor) -> Tensor:
    """(score, hash of key) as one integer of the same order, which tells equal scores apart; int64 in [0, 2^63)."""
    return (ordered_image(scores) << HASH_BITS) | hash_of(keys)


def score_of_rank(rank: Tensor) -> Tensor:
    """The float32 score in a rank."""
    return score_of_image(rank >> HASH_BITS)


@dataclass(frozen=True)
class SelectionState:
    """What a resumed run has to know of the steps before, equal on all ranks.

    `cuts`: the ranks at which the last steps were cut, oldest first. `surplus`: what steps under a threshold selected
    beyond K, as a part of K.
    """

    cuts: tuple[int, ...] = ()
    surplus: float = 0.0


AT_START = SelectionState()


class RecentCuts:
    """The ranks at which the last steps were cut; kept on the device.

    The threshold is their median: one step that is unlike the others does not move it, a lasting change reaches it at
    the second step. What a threshold selects beyond K is taken back over the steps that follow, so that also under a
    steady drift K are selected on average.
    """

    def __init__(self, state: SelectionState = AT_START) -> None:
        """Goes on from what `state` gave."""
        self._cuts: deque[Tensor] = deque((torch.tensor(cut) for cut in state.cuts), maxlen=_WINDOW)
        self._surplus = torch.tensor(state.surplus, dtype=torch.float64)

    def __bool__(self) -> bool:
        """Whether there was any step yet."""
        return bool(self._cuts)

    def add(self, cut: Tensor, surplus: Tensor | None = None) -> None:
        """Keeps the cut of a step, an int64 scalar, or `NOTHING_CUT`, and of one under a threshold the surplus."""
        self._cuts.append(cut)
        if surplus is not None:
            self._surplus = surplus

    def surplus_with(self, selected: Tensor, count: Tensor) -> Tensor:
        """The surplus after a step under a threshold that selected so many in place of K, over all ranks."""
        surplus = self._surplus.to(count.device, non_blocking=True) + (selected - count) / count.clamp(min=1)
        return surplus.clamp(-_LARGEST_SURPLUS, _LARGEST_SURPLUS)

    def threshold(self, device: torch.device) -> Tensor:
        """The median of the cuts (of two, the lower), an int64 scalar; `NOTHING_CUT`, below any rank, without one."""
        cuts = self._on(device).sort().values
        missing = (cuts == NOTHING_CUT).sum()
        middle = (missing + len(cuts) - 1) // 2
        return cuts.gather(0, middle[None])[0]

    def spread(self, device: torch.device) -> Tensor:
        """How far the scores of the cuts lie apart, their mean distance from the median; a float32 scalar."""
        cuts = self._on(device)
        there = cuts != NOTHING_CUT
        distances = (score_of_rank(cuts) - score_of_rank(self.threshold(device))).abs()
        return distances.where(there, 0.0).sum() / there.sum().clamp(min=1)

    def state(self) -> SelectionState:
        """What `__init__` takes; waits for the device."""
        cuts = tuple(int(cut) for cut in torch.stack(list(self._cuts)).tolist()) if self._cuts else ()
        return SelectionState(cuts, float(self._surplus))

    def _on(self, device: torch.device) -> Tensor:
        self._cuts = deque((cut.to(device, non_blocking=True) for cut in self._cuts), maxlen=_WINDOW)
        return torch.stack(list(self._cuts))


def corrected(count: Tensor, valid: Tensor, surplus: Tensor) -> Tensor:
    """At which of the `valid` targets to cut, for K = `count` to come out on average; int64 scalar."""
    return torch.minimum(count - (surplus * count / _STEPS_TO_BALANCE).round().to(torch.int64), valid)
