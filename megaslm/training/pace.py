"""Stragglers: which ranks are slow, and since when. The slowest rank sets the pace of all."""

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
    """A rank's time as a multiple of the ranks' median time, by cause."""

    compute: float
    """For a product of two matrices: a slow processor or GPU."""
    loading: float
    """For a training step that contains this rank's wait for rows instead of the median wait."""
    halts: float
    """For any work: the host lets the rank run for a part of the time only."""

    @property
    def largest(self) -> float:
        """The ratio by which a rank is judged."""
        return max(self)


@dataclass(frozen=True)
class PaceReport:
    """The comparison of the ranks in one report."""

    slowest_rank: int
    slowest_ratio: float
    """The slowest rank's time as a multiple of the median; 1 where all are equally fast."""
    news: tuple[str, ...]
    """A line for each rank that has become a straggler, or no longer is one."""


class PaceWatch:
    """Compares the ranks of a run at every report."""

    def __init__(self, meter: PaceMeter, world: World, *, slow_ratio: float, last_step: int) -> None:
        """Called on all ranks; `last_step` is the step before the first."""
        self._meter = meter
        self._slow_ranks = SlowRanks(gather_objects(socket.gethostname()), slow_ratio, last_step)

    def report(self, step: int) -> PaceReport:
        """Called on all ranks after `step`. Reads the device once."""
        ratios = compare(self._meter.share())
        slowest = max(range(len(ratios)), key=lambda rank: ratios[rank].largest)
        return PaceReport(slowest, ratios[slowest].largest, tuple(self._slow_ranks.judge(step, ratios)))


class SlowRanks:
    """Tells a lasting straggler from a single slow report."""

    def __init__(self, hosts: Sequence[str], slow_ratio: float, last_step: int) -> None:
        """`hosts` are in rank order."""
        self._hosts = hosts
        self._slow_ratio = slow_ratio
        self._last_step = last_step
        # For each rank, the first steps of the newest reports, if all of these contradict `_known_slow`.
        self._doubtful_since: list[list[int]] = [[] for _ in hosts]
        self._known_slow = [False for _ in hosts]

    def judge(self, step: int, ratios: Sequence[Ratios]) -> list[str]:
        """A line for each rank that two reports in a row, the second one after `step`, show as changed."""
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
            f"warning: {name} is a straggler: {found.largest:.1f} times the median of all ranks for the same work "
            f"(compute {found.compute:.1f}×, loading {found.loading:.1f}×, halts {found.halts:.1f}×) since step {since}"
        )


def compare(paces: Sequence[Pace]) -> list[Ratios]:
    """Compares each rank with the lower median of all ranks."""
    compute = _median([pace.product_seconds for pace in paces])
    loading = _median([pace.loading_seconds for pace in paces])
    stretched = [1.0 / max(1.0 - pace.paused_share, _LEAST_RUNNING_SHARE) for pace in paces]
    # A step lasts as long as on the rank that loads longest. All ranks share the part of it that is not loading.
    longest = max(paces, key=lambda pace: pace.loading_seconds)
    rest = max(0.0, longest.step_seconds - longest.loading_seconds)
    return [
        Ratios(
            compute=_ratio(pace.product_seconds, compute),
            loading=_ratio(rest + pace.loading_seconds, rest + loading),
            halts=_ratio(by_halts, _median(stretched)),
        )
        for pace, by_halts in zip(paces, stretched, strict=True)
    ]


def _median(values: Sequence[float]) -> float:
    """The lower median of the values that are not NaN; NaN if there are none."""
    measured = sorted(value for value in values if not math.isnan(value))
    return measured[(len(measured) - 1) // 2] if measured else math.nan


def _ratio(own: float, median: float) -> float:
    """1 where nothing was measured."""
    return own / median if median > 0.0 and not math.isnan(own) else 1.0
