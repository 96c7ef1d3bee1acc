"""Who has been heard when, by the clock of the one that listens: clocks of several hosts are never compared."""

import time
from collections.abc import Iterable

from megaslm.engine.liveness.life_signs import Sign

_LONGEST_TICK_SECONDS = 1.0


class AwakeClock:
    """Counts the seconds in which this process could run and listen.

    A scheduler may suspend a whole job. None of its ranks has been silent then, and none has hung.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._ticked_at = time.monotonic()

    def tick(self) -> float:
        """The seconds so far; to be called several times a second."""
        now = time.monotonic()
        self._seconds += min(now - self._ticked_at, _LONGEST_TICK_SECONDS)
        self._ticked_at = now
        return self._seconds


class Attendance:
    """The ranks that were heard, from the first sign of each; who has said goodbye is no longer expected."""

    def __init__(self) -> None:
        self._signs: dict[int, Sign] = {}
        self._heard_at: dict[int, float] = {}
        self._moved_at = 0.0

    def hear(self, signs: Iterable[Sign], now: float) -> None:
        """Note the newest sign of each rank; `now` is in seconds of the listener's clock."""
        for sign in signs:
            former = self._signs.get(sign.rank)
            if former is not None and former.given_at == sign.given_at:
                continue
            if former is None or former.place.since != sign.place.since or sign.is_last:
                self._moved_at = now
            self._signs[sign.rank] = sign
            self._heard_at[sign.rank] = now

    @property
    def present(self) -> list[Sign]:
        """The last sign of every rank that is expected to give more, in rank order."""
        return [sign for _, sign in sorted(self._signs.items()) if not sign.is_last]

    def silent(self, now: float, limit_seconds: float) -> list[tuple[Sign, float]]:
        """The ranks that have given no sign for longer than the limit, and for how many seconds."""
        waited = ((sign, now - self._heard_at[sign.rank]) for sign in self.present)
        return [(sign, seconds) for sign, seconds in waited if seconds > limit_seconds]

    def seconds_at_a_standstill(self, now: float) -> float:
        """For how long no rank has come to another place of its work."""
        return now - self._moved_at if self.present else 0.0
