"""A scheduler's request to stop: SIGTERM or SIGUSR1, which a job answers between two steps of its work."""

import ctypes
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Self

from megaslm.errors import Stopped

if TYPE_CHECKING:  # The handler is set before torch is imported, which takes seconds.
    from megaslm.engine.cpu_group import CpuGroup

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# A scheduler and its launcher may both signal a rank, one right after the other.
_ONE_TELLING_SECONDS = 10.0
_NO_SIGNAL = 0
_LIBC = ctypes.CDLL(None)


class StopSignal:
    """After `listen`, or within its context, a first SIGTERM or SIGUSR1 is only recorded. A second one, ten seconds
    or more after it, ends the process by the signal's default action, even where the main thread is stuck in a
    collective."""

    def __init__(self) -> None:
        self._told: signal.Signals | None = None

    def listen(self) -> None:
        """Start to record signals, until the process ends."""
        self._over = threading.Event()
        # Python runs handlers in the main thread only, between two of its own instructions, and a collective may block
        # that thread for ever. A pipe gets the number of each signal at once.
        self._numbers, self._signals = os.pipe()
        os.set_blocking(self._signals, False)
        self._listener = threading.Thread(target=self._listen, name="stop-signal", daemon=True)
        self._listener.start()
        self._former_pipe = signal.set_wakeup_fd(self._signals, warn_on_full_buffer=False)
        self._former = {number: signal.signal(number, self._handle) for number in _SIGNALS}

    def __enter__(self) -> Self:
        self.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._former_pipe)
        self._over.set()
        os.write(self._signals, bytes([_NO_SIGNAL]))
        self._listener.join()
        for number, handler in self._former.items():
            signal.signal(number, handler)
        os.close(self._signals)
        os.close(self._numbers)

    @property
    def told(self) -> bool:
        """Whether this process was told to stop."""
        return self._told is not None

    def raise_if_told(self, what_is_kept: str) -> None:
        """Raise Stopped where the process was told to stop."""
        if self.told:
            raise self.stopped(what_is_kept)

    def raise_if_told_anywhere(self, cpu_group: "CpuGroup", what_is_kept: str) -> None:
        """Raise Stopped on all ranks where one of them was told to stop. Called on all ranks."""
        if cpu_group.any(self.told):
            raise self.stopped(what_is_kept)

    def stopped(self, what_is_kept: str) -> Stopped:
        """The exception for a process that was told to stop, or whose peer was."""
        by = "" if self._told is None else f" by {self._told.name}"
        return Stopped(f"told to stop{by}; {what_is_kept}")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """In the main thread, where possible, so that code there sees the signal without waiting for the listener."""
        self._told = signal.Signals(number)

    def _listen(self) -> None:
        while self._told is None and not self._over.is_set():
            (number,) = os.read(self._numbers, 1)
            if number in _SIGNALS:
                self._told = signal.Signals(number)
        if not self._over.wait(_ONE_TELLING_SECONDS):
            for number in _SIGNALS:
                # Python can set handlers only in the main thread. From now on the kernel acts on the signal.
                _LIBC.signal(number, signal.SIG_DFL.value)
