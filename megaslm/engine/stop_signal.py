"""A request to stop: Ctrl-C, or a scheduler's SIGTERM or SIGUSR1. A job answers it between two steps of its work."""

import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

from megaslm.errors import INTERRUPTED, Stopped

if TYPE_CHECKING:  # The handler is set before torch is imported, which takes seconds.
    from megaslm.engine.cpu_group import CpuGroup

_FROM_SCHEDULERS = (signal.SIGTERM, signal.SIGUSR1)
_SIGNALS = (signal.SIGINT, *_FROM_SCHEDULERS)
_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGUSR1: "SIGUSR1"}
# A scheduler and its launcher may both signal a rank, one right after the other.
_ONE_TELLING_SECONDS = 10.0
# A program that started this one may pass on the Ctrl-C that the terminal has sent to both.
_ONE_PRESS_SECONDS = 0.5
_NO_SIGNAL = 0
_LIBC = ctypes.CDLL(None)
# A progress bar hides the cursor, and an end at once leaves no time to remove it.
_BELOW_A_BAR = "\n\x1b[?25h"

before_ending: list[Callable[[], object]] = []
"""Called before a signal ends the process at once."""

# A child must not write its signals into the pipe of its parent.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


class StopSignal:
    """After `listen`, or within its context, a first signal is only recorded.

    A second Ctrl-C, half a second or more after the first one, ends the process at once. So does a second SIGTERM or
    SIGUSR1 ten seconds or more after the first signal, by the signal's default action. Both do so even where the main
    thread is stuck in a collective.
    """

    def __init__(self, *, before_work: str | None = None) -> None:
        self._told: signal.Signals | None = None
        self.kept = "what was saved before is kept"
        """What a second Ctrl-C says of the work so far. It is known beforehand: the end must not wait for a disk."""
        self.before_work = before_work
        """Says that nothing is lost yet: with it, a first Ctrl-C ends the process at once. None once there is work."""

    def listen(self) -> None:
        """Start to record signals, until the process ends."""
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
        return Stopped(_reason(self._told, what_is_kept))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """In the main thread, where possible, so that code there sees the signal without waiting for the listener."""
        self._record(number)

    def _record(self, number: int) -> None:
        # Ctrl-C is what the user did, though a launcher tells by SIGTERM too: of two signals that come at once, the
        # kernel runs the handler of the higher number first.
        if self._told is None or number == signal.SIGINT:
            self._told = signal.Signals(number)

    def _listen(self) -> None:
        pressed_at: float | None = None
        act_at: float | None = None
        while True:
            left = None if act_at is None else max(0.0, act_at - time.monotonic())
            if not select.select([self._numbers], [], [], left)[0]:
                act_at = None
                for each in _FROM_SCHEDULERS:
                    # Python can set handlers only in the main thread. From now on the kernel acts on the signal.
                    _LIBC.signal(each, signal.SIG_DFL.value)
                continue
            (number,) = os.read(self._numbers, 1)
            if number == _NO_SIGNAL:
                return
            if number not in _SIGNALS:
                continue
            if pressed_at is None and act_at is None:
                act_at = time.monotonic() + _ONE_TELLING_SECONDS
            self._record(number)
            if number != signal.SIGINT:
                continue
            if (nothing_lost := self.before_work) is not None:
                _end(f"{Stopped.__name__}: {_reason(signal.SIGINT, nothing_lost)}", Stopped.exit_status)
            if pressed_at is None:
                pressed_at = time.monotonic()
                # The listener must not wait for a terminal that is halted.
                threading.Thread(target=_say_what_comes, daemon=True).start()
            elif time.monotonic() - pressed_at >= _ONE_PRESS_SECONDS:
                _end(f"Ctrl-C again: ended at once; {self.kept}", INTERRUPTED)


def _reason(told: signal.Signals | None, what_is_kept: str) -> str:
    by = "" if told is None else f" by {_NAMES[told]}"
    return f"told to stop{by}; {what_is_kept}"


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _say_what_comes() -> None:
    if _is_first_rank():
        with suppress(OSError, ValueError):
            print("Ctrl-C: saves what is done and ends; Ctrl-C again ends at once", file=sys.stderr, flush=True)


def _end(line: str, status: int) -> NoReturn:
    """Ends this process from any thread. Locks of streams may be held by a thread that is stuck."""
    for call in before_ending:
        call()
    if _is_first_rank():
        with suppress(OSError, ValueError):
            errors = sys.stderr.fileno()
            os.write(errors, f"{_BELOW_A_BAR if os.isatty(errors) else ''}{line}\n".encode())
    os._exit(status)
