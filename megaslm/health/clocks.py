"""The differences between the clocks of the hosts."""

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
    """A host's clock, read at nearly the same moment on all ranks."""

    seconds: float
    """Since 1970."""
    error_seconds: float
    """Most seconds between the last rank's arrival and this reading."""


def read_clock_together(world: World) -> ClockReading:
    """Reads the clock of every rank at nearly the same moment; called on all ranks.

    No rank's all-reduce ends before the last rank has begun its own. So each clock is read between that moment and the
    end of an all-reduce whose duration the rank knows, and two readings are at most the longer duration apart.
    """
    signal = torch.zeros(1, device=world.device)
    # After the first all-reduce, all ranks reach the second one at nearly the same time.
    all_reduce_sum(signal).item()
    began = time.monotonic()
    all_reduce_sum(signal).item()
    return ClockReading(time.time(), time.monotonic() - began)


def most_seconds_apart(readings: Sequence[ClockReading]) -> float:
    """An upper bound of the difference between two clocks."""
    seconds = [reading.seconds for reading in readings]
    return max(seconds) - min(seconds) + _error_seconds(readings)


def clock_trait(readings: Sequence[ClockReading]) -> Trait:
    """The trait that clocks agree. Clocks without a gap between them are one group."""
    rising = sorted(reading.seconds for reading in readings)
    gap_seconds = _MOST_SECONDS_APART + _error_seconds(readings)
    groups = {rising[0]: rising[0]}
    for before, after in pairwise(rising):
        groups[after] = after if after - before > gap_seconds else groups[before]
    return Trait(
        "the host's clock",
        [f"at {groups[reading.seconds] - rising[0]:+.1f} s" for reading in readings],
        "synchronise all hosts with a time server",
        must_agree=False,
    )


def _error_seconds(readings: Sequence[ClockReading]) -> float:
    return max(reading.error_seconds for reading in readings)
