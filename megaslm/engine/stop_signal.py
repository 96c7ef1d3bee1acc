"""Being told to stop: a scheduler's SIGTERM, which a job answers between two steps of its work."""

import signal
from types import FrameType, TracebackType
from typing import Self

from megaslm.errors import Stopped


class StopSignal:
    """Within its context SIGTERM is noted, and no more; a second one ends the process as it always does."""

    def __init__(self) -> None:
        self._told = False

    def __enter__(self) -> Self:
        self._former = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTERM, self._former)

    def raise_if_told(self, what_is_kept: str) -> None:
        """Raise Stopped where the process was told to stop."""
        if self._told:
            raise Stopped(f"told to stop by SIGTERM; {what_is_kept}")

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._told = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
