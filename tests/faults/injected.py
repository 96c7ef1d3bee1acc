"""The faults that happened to a run, as its ranks announced them."""

import re
from dataclasses import dataclass

_INJECTED = re.compile(r"injected fault (\w+)@rank(\d+):step(\d+):(\w+):attempt(\d+) at ([\d.]+)")


@dataclass(frozen=True)
class InjectedAt:
    """A fault that happened."""

    action: str
    rank: int
    step: int
    attempt: int
    seconds: float
    """Of the system's clock."""


def injected_in(output: str) -> list[InjectedAt]:
    """Those that a run's output tells of, first to last."""
    found = [
        InjectedAt(action, int(rank), int(step), int(attempt), float(seconds))
        for action, rank, step, _, attempt, seconds in _INJECTED.findall(output)
    ]
    return sorted(found, key=lambda fault: fault.seconds)
