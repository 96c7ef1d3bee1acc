"""The heartbeat that every rank sends twice a second, and the verdict: why a job ends, and which rank is to blame."""

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from functools import lru_cache
from typing import Self, get_args

from megaslm.engine.heartbeat import Phase, Position
from megaslm.errors import MegaSLMError
from megaslm.health.processes import Process

_ORDER = {point: number for number, point in enumerate(get_args(Phase))}
_GRACE_AFTER_A_FAILURE_SECONDS = 5.0
_GRACE_AFTER_A_DEATH_SECONDS = 1.0
_MOST_LISTED = 16


@dataclass(frozen=True)
class Heartbeat:
    """A rank's report of itself at one moment."""

    rank: int
    process: Process
    position: Position
    """The position of its main thread in its work."""
    given_at: float
    """Seconds by the rank's own monotonic clock."""
    waits_for_others: bool = False
    """Whether its main thread is known to wait for other ranks."""
    is_last: bool = False
    """Whether this beat is its goodbye."""

    def encode(self) -> str:
        """The format that `decode` reads."""
        rest = [
            self.rank,
            astuple(self.process),
            astuple(self.position),
            self.waits_for_others,
            self.is_last,
        ]
        return f"{self.given_at!r} {json.dumps(rest)}"

    @classmethod
    def decode(cls, text: bytes) -> Self:
        """The inverse of `encode`."""
        given_at, _, rest = text.partition(b" ")
        rank, process, position, waits_for_others, is_last = _rest(rest)
        return cls(rank, process, position, float(given_at), waits_for_others, is_last)

    def __str__(self) -> str:
        """The rank, and its position when it sent the beat."""
        seconds = self.given_at - self.position.since
        return (
            f"rank {self.rank} (host {self.process.host}, process {self.process.pid}, last at '{self.position.phase}' "
            f"of step {self.position.step} for {seconds:.0f} s)"
        )


# Little but the time changes between a rank's beats, and the first rank decodes those of all ranks.
@lru_cache(maxsize=4096)
def _rest(text: bytes) -> tuple[int, Process, Position, bool, bool]:
    rank, process, position, waits_for_others, is_last = json.loads(text)
    return rank, Process(*process), Position(*position), waits_for_others, is_last


@dataclass(frozen=True)
class Verdict:
    """The finding of one rank, and the reaction of all ranks."""

    finding: str
    found_by: int
    exit_status: int = 1
    grace_seconds: float = 0.0
    """How long a rank may take to end by itself, as its own collectives fail too."""
    unable_to_end: tuple[Process, ...] = ()
    """Processes that a rank on their host must kill."""

    def encode(self) -> str:
        """The format that `decode` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: bytes) -> Self:
        """The inverse of `encode`."""
        fields = json.loads(text)
        processes = tuple(Process(**process) for process in fields.pop("unable_to_end"))
        return cls(**fields, unable_to_end=processes)


def on_silence(silent: Sequence[tuple[Heartbeat, float]], found_by: int) -> Verdict:
    """The verdict on ranks without a beat for so many seconds."""
    found = [
        f"{beat} has given no heartbeat for {seconds:.0f} s; its process is {beat.process.state}"
        for beat, seconds in silent
    ]
    return Verdict(_listed(found), found_by, unable_to_end=tuple(beat.process for beat, _ in silent))


def on_death(dead: Sequence[Heartbeat], found_by: int) -> Verdict:
    """The verdict on ranks that are gone and have not said goodbye."""
    found = [f"{beat} has died: its process is {beat.process.state}" for beat in dead]
    return Verdict(_listed(found), found_by, grace_seconds=_GRACE_AFTER_A_DEATH_SECONDS)


def on_death_of_first(first: Heartbeat, found_by: int) -> Verdict:
    """The verdict where the first rank, which connects the others, is gone and has not said goodbye."""
    found = f"{first} has died or cannot be reached any more; its process is {first.process.state}"
    return Verdict(found, found_by, grace_seconds=_GRACE_AFTER_A_DEATH_SECONDS)


def on_failure(beat: Heartbeat, error: BaseException) -> Verdict:
    """The verdict on a rank that ends with an error of its own."""
    known = isinstance(error, MegaSLMError)
    message = str(error) if known else f"{type(error).__name__}: {error}"
    status = error.exit_status if isinstance(error, MegaSLMError) else 1
    found = f"{beat} failed: {message}"
    return Verdict(found, beat.rank, status, grace_seconds=_GRACE_AFTER_A_FAILURE_SECONDS)


def on_standstill(beats: Sequence[Heartbeat], seconds: float, found_by: int) -> Verdict:
    """The verdict where all ranks send beats, and no rank has moved for so many seconds."""
    guilty = guilty_of_standstill(beats)
    if guilty:
        waiting = sum(beat.waits_for_others for beat in beats)
        verb = "holds" if len(guilty) == 1 else "hold"
        blame = f"{_listed(guilty)} {verb} up the job; {waiting} of {len(beats)} ranks are seen to wait for others"
    else:
        blame = f"it is not known which one holds up the others; the positions are {_listed(beats)}"
    return Verdict(f"no rank has got any further for {seconds:.0f} s: {blame}", found_by)


def guilty_of_standstill(beats: Sequence[Heartbeat]) -> list[Heartbeat]:
    """The ranks that hold up the job: of those that are not seen to wait for others, the ones furthest behind.

    Furthest behind are the ranks at the lowest step and there at the first phase in the order of `Phase`. The result is
    empty where all ranks wait, for each other or for a network, and where none waits and all are at the same position.
    A single rank has no other to wait for.
    """
    if len(beats) == 1:
        return list(beats)
    busy = [beat for beat in beats if not beat.waits_for_others]
    behind = min((_progress(beat) for beat in busy), default=None)
    guilty = [beat for beat in busy if _progress(beat) == behind]
    return guilty if len(guilty) < len(beats) else []


def _progress(beat: Heartbeat) -> tuple[int, int]:
    return beat.position.step, _ORDER[beat.position.phase]


def _listed(findings: Sequence[object]) -> str:
    left_out = len(findings) - _MOST_LISTED
    listed = "; ".join(map(str, findings[:_MOST_LISTED]))
    return f"{listed}; and {left_out} more" if left_out > 0 else listed
