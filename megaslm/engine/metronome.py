"""How long the host does not let this process run: stopped, over its share of processors, or swapped out."""

import threading
import time

_BEAT_SECONDS = 0.02
# The interpreter's lock and the scheduler make every thread wait a little.
_TOLERATED_SECONDS = 0.02


class Metronome:
    """A thread that wants to wake up at even times. What it comes too late, the whole process stood still.

    Work of the other threads, and their waiting for a device or for other ranks, does not hold it up.
    """

    def __init__(self) -> None:
        """Starts it; it ends with the process, or at `stop`."""
        self._halted_seconds = 0.0
        self._asked_at = time.monotonic()
        self._halted_before = 0.0
        self._stopped = threading.Event()
        threading.Thread(target=self._beat, name="metronome", daemon=True).start()

    def halted_share(self) -> float:
        """The share of the time since it was last asked in which the process stood still."""
        now, halted = time.monotonic(), self._halted_seconds
        share = (halted - self._halted_before) / max(now - self._asked_at, _BEAT_SECONDS)
        self._asked_at, self._halted_before = now, halted
        return min(share, 1.0)

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()

    def _beat(self) -> None:
        woken_at = time.monotonic()
        while not self._stopped.wait(_BEAT_SECONDS):
            now = time.monotonic()
            late_seconds = now - woken_at - _BEAT_SECONDS
            if late_seconds > _TOLERATED_SECONDS:
                self._halted_seconds += late_seconds
            woken_at = now
