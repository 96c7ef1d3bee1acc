"""The sign of life that every rank gives twice a second."""

import json
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Self

from megaslm.engine.liveness.processes import Process
from megaslm.engine.places import Place


@dataclass(frozen=True)
class Sign:
    """What one rank says of itself at one moment."""

    rank: int
    process: Process
    place: Place
    """Where its main thread is in its work."""
    given_at: float
    """Of the rank's own monotonic clock, in seconds."""
    waits_for_others: bool = False
    """Whether its main thread is known to wait for other ranks."""
    is_last: bool = False
    """Whether it says goodbye by it."""

    def encode(self) -> str:
        """As `decode` reads it."""
        rest = [
            self.rank,
            astuple(self.process),
            astuple(self.place),
            self.waits_for_others,
            self.is_last,
        ]
        return f"{self.given_at!r} {json.dumps(rest)}"

    @classmethod
    def decode(cls, text: bytes) -> Self:
        """The sign that was encoded."""
        given_at, _, rest = text.partition(b" ")
        rank, process, place, waits_for_others, is_last = _rest(rest)
        return cls(rank, process, place, float(given_at), waits_for_others, is_last)

    def __str__(self) -> str:
        """Which rank this is, and where it was when it gave the sign."""
        seconds = self.given_at - self.place.since
        return (
            f"rank {self.rank} (host {self.process.host}, process {self.process.pid}, last at '{self.place.point}' of "
            f"step {self.place.step} for {seconds:.0f} s)"
        )


# Between one sign and the next of a rank little else changes than the time, and the first rank reads those of all.
@lru_cache(maxsize=4096)
def _rest(text: bytes) -> tuple[int, Process, Place, bool, bool]:
    rank, process, place, waits_for_others, is_last = json.loads(text)
    return rank, Process(*process), Place(*place), waits_for_others, is_last
