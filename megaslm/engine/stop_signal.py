"""Being told to stop: a scheduler's SIGTERM or SIGUSR1, which a job answers between two steps of its work."""

import os
import signal
import time
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Self

from megaslm.errors import Stopped

if TYPE_CHECKING:  # It is begun before torch is imported, which takes seconds.
    from megaslm.engine.agreement import Agreement

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# A scheduler and the launcher that it told may both tell a rank, one right after the other.
_ONE_TELLING_SECONDS = 10.0


class StopSignal:
    """Within its context SIGTERM and SIGUSR1 are noted, and no more; one that comes ten seconds after the first ends
    the process as it always does."""

    def __init__(self) -> None:
        self._told: signal.Signals | None = None
        self._told_at = 0.0

    def __enter__(self) -> Self:
        self._former = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @property
    def told(self) -> bool:
        """Whether this process was told to stop."""
        return self._told is not None

    def raise_if_told(self, what_is_kept: str) -> None:
        """Raise Stopped where the process was told to stop."""
        if self.told:
            raise self.stopped(what_is_kept)

    def raise_if_told_anywhere(self, agreement: "Agreement", what_is_kept: str) -> None:
        """Raise Stopped on all ranks where one of them was told to stop; called on all ranks."""
        if agreement.any(self.told):
            raise self.stopped(what_is_kept)

    def stopped(self, what_is_kept: str) -> Stopped:
        """What to raise where this process, or that of another rank, was told to stop."""
        by = "" if self._told is None else f" by {self._told.name}"
        return Stopped(f"told to stop{by}; {what_is_kept}")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._told is None:
            self._told, self._told_at = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._told_at > _ONE_TELLING_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
