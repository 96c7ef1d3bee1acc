"""The position of this process in its work. Its watchdog sends it to the other ranks."""

import time
from dataclasses import dataclass, field
from typing import Literal

Phase = Literal["start", "load", "data", "step", "validate", "save", "end"]
"""Phases of a rank, in this order: the start of the job, reading a checkpoint, waiting for its own rows, a training
step, validation, a checkpoint, the end."""


@dataclass(frozen=True)
class Position:
    """A phase of the work, and the time at which it began."""

    phase: Phase = "start"
    step: int = 0
    """The current optimiser step, or the last one."""
    since: float = field(default_factory=time.monotonic)
    """By the monotonic clock, in seconds."""


_position = Position()


def heartbeat(phase: Phase, step: int) -> None:
    """Record that this process has reached a phase."""
    global _position
    _position = Position(phase, step)


def last_position() -> Position:
    """The last recorded position of this process."""
    return _position
