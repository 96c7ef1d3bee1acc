"""Where this process is in its work: its watchdog tells the other ranks."""

import time
from dataclasses import dataclass, field
from typing import Literal

Phase = Literal["start", "load", "data", "step", "validate", "save", "end"]
"""What a rank can be at, in this order: the start of the job, reading a checkpoint, waiting for its own rows, a step of
training, validation, a checkpoint, the end."""


@dataclass(frozen=True)
class Position:
    """A phase of the work, and when it was entered."""

    phase: Phase = "start"
    step: int = 0
    """The optimiser step that is being made, or was made last."""
    since: float = field(default_factory=time.monotonic)
    """Of the monotonic clock, in seconds."""


_position = Position()


def heartbeat(phase: Phase, step: int) -> None:
    """Note that this process has come so far."""
    global _position
    _position = Position(phase, step)


def last_position() -> Position:
    """Where this process is."""
    return _position
