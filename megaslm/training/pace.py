"""Which ranks are slow, and since when: all of them are as quick as the slowest."""

import math
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from megaslm.engine.distributed import World, gather_objects
from megaslm.health.pace import Pace, PaceMeter

_REPORTS_IN_A_ROW = 2
_LEAST_RUNNING_SHARE = 0.01


class Ratios(NamedTuple):
    """How many times as long as the middle rank a rank needs, by what holds it up."""

    compute: float
    """A product of two matrices: by its processor or GPU."""
    loading: float
    """A step of training with its own wait for rows in it, in place of the middle rank's."""
    halts: float
    """Anything, because its host lets it run for a part of the time only."""

    @property
    def largest(self) -> float:
        """The one that counts."""
        return max(self)


@dataclass(frozen=True)
class PaceReport:
    """What a report says of the ranks."""

    slowest_rank: int
    slowest_ratio: float
    """How many times as long as the middle rank the slowest one needs; 1 where all are alike."""
    news: tuple[str, ...]
    """A line for each rank that has become slow, or is so no more."""


class PaceWatch:
    """Compares the ranks of a run at every report."""

    def __init__(self, meter: PaceMeter, world: World, *, slow_ratio: float, last_step: int) -> None:
        """Called on all ranks; `last_step` is the step before the first."""
        self._meter = meter
        self._slow_ranks = SlowRanks(gather_objects(socket.gethostname()), slow_ratio, last_step)

    def report(self, step: int) -> PaceReport:
        """Called on all ranks after `step`, and reads the device once."""
        ratios = compare(self._meter.share())
        slowest = max(range(len(ratios)), key=lambda rank: ratios[rank].largest)
        return PaceReport(slowest, ratios[slowest].largest, tuple(self._slow_ranks.judge(step, ratios)))


class SlowRanks:
    """Tells a rank that is slow from one that was, for once."""

    def __init__(self, hosts: Sequence[str], slow_ratio: float, last_step: int) -> None:
        """The hosts in rank order."""
        self._hosts = hosts
        self._slow_ratio = slow_ratio
        self._last_step = last_step
        # Of each rank since which steps its reports say the contrary of what is known of it.
        self._doubtful_since: list[list[int]] = [[] for _ in hosts]
        self._known_slow = [False for _ in hosts]

    def judge(self, step: int, ratios: Sequence[Ratios]) -> list[str]:
        """A line for each rank of which two reports in a row, the one after `step` being the second, say news."""
        since, self._last_step = self._last_step + 1, step
        news = []
        for rank, found in enumerate(ratios):
            doubtful = self._doubtful_since[rank]
            if (found.largest >= self._slow_ratio) == self._known_slow[rank]:
                doubtful.clear()
                continue
            doubtful.append(since)
            if len(doubtful) == _REPORTS_IN_A_ROW:
                self._known_slow[rank] = not self._known_slow[rank]
                news.append(self._line(rank, found, doubtful[0]))
                doubtful.clear()
        return news

    def _line(self, rank: int, found: Ratios, since: int) -> str:
        name = f"rank {rank} on {self._hosts[rank]}"
        if not self._known_slow[rank]:
            return f"{name} is as quick as the others again since step {since}"
        return (
            f"warning: {name} is slow: {found.largest:.1f} times as long as the middle rank for the same work "
            f"(compute {found.compute:.1f}×, loading {found.loading:.1f}×, halts {found.halts:.1f}×) since step {since}"
        )


def compare(paces: Sequence[Pace]) -> list[Ratios]:
    """Each rank with the middle one, of an even number the quicker of the two."""
    compute = _middle([pace.product_seconds for pace in paces])
    loading = _middle([pace.loading_seconds for pace in paces])
    stretched = [1.0 / max(1.0 - pace.paused_share, _LEAST_RUNNING_SHARE) for pace in paces]
    # A step lasts as long as on the rank that loads longest; what of it is not loading, all ranks have in common.
    longest = max(paces, key=lambda pace: pace.loading_seconds)
    rest = max(0.0, longest.step_seconds - longest.loading_seconds)
    return [
        Ratios(
            compute=_ratio(pace.product_seconds, compute),
            loading=_ratio(rest + pace.loading_seconds, rest + loading),
            halts=_ratio(by_halts, _middle(stretched)),
        )
        for pace, by_halts in zip(paces, stretched, strict=True)
    ]


def _middle(values: Sequence[float]) -> float:
    """The middle one of those that were measured, of two the smaller; NaN where there is none."""
    measured = sorted(value for value in values if not math.isnan(value))
    return measured[(len(measured) - 1) // 2] if measured else math.nan


def _ratio(own: float, middle: float) -> float:
    """1 where nothing was measured."""
    return own / middle if middle > 0.0 and not math.isnan(own) else 1.0
