"""How far the clocks of the hosts are apart."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from megaslm.engine.distributed import World, all_reduce_sum
from megaslm.health.findings import Trait

_MOST_SECONDS_APART = 5.0


@dataclass(frozen=True)
class ClockReading:
    """A host's clock, at a moment that is nearly the same on all ranks."""

    seconds: float
    """Since 1970."""
    error_seconds: float
    """The moment was at most so long after the one in which the last rank came."""


def read_clock_together(world: World) -> ClockReading:
    """Reads the clock as all ranks do; called on all of them.

    Nobody's all-reduce ends before the last rank has begun its own. So each clock is read between that moment and the
    end of an all-reduce of which the rank knows how long it took, and two readings are at most the longer one apart.
    """
    signal = torch.zeros(1, device=world.device)
    # After the first one all come to the second at nearly the same time.
    all_reduce_sum(signal).item()
    began = time.monotonic()
    all_reduce_sum(signal).item()
    return ClockReading(time.time(), time.monotonic() - began)


def most_seconds_apart(readings: Sequence[ClockReading]) -> float:
    """No two clocks are further apart."""
    seconds = [reading.seconds for reading in readings]
    return max(seconds) - min(seconds) + _error_seconds(readings)


def clock_trait(readings: Sequence[ClockReading]) -> Trait:
    """That the clocks tell about the same time: those between which there is no gap are one group."""
    rising = sorted(reading.seconds for reading in readings)
    gap_seconds = _MOST_SECONDS_APART + _error_seconds(readings)
    groups = {rising[0]: rising[0]}
    for before, after in pairwise(rising):
        groups[after] = after if after - before > gap_seconds else groups[before]
    return Trait(
        "the host's clock",
        [f"at {groups[reading.seconds] - rising[0]:+.1f} s" for reading in readings],
        "let all hosts follow a time server",
        must_agree=False,
    )


def _error_seconds(readings: Sequence[ClockReading]) -> float:
    return max(reading.error_seconds for reading in readings)
