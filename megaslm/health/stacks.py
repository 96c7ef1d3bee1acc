"""The stacks of this process, and an end to it where anything may block: exit handlers, stderr's lock, a full pipe."""

import faulthandler
import os
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import torch

from megaslm.health.verdict import Verdict

_COLLECTIVES = ("/torch/distributed/", "/deepspeed/comm/", "/megaslm/engine/cpu_group.py")
"""The last of them because a collective that was begun before is waited for in no Python code of torch's."""
_OF_ONE_RANK = ("/torch/distributed/checkpoint/",)
_DEEPSPEED = "/deepspeed/"
_GPU_ANSWERS_WITHIN_SECONDS = 0.2
_REPORT_SECONDS = 1.0
_STDERR = 2


class MainThread:
    """The main thread as another one sees it."""

    def __init__(self, device: torch.device) -> None:
        """Of a rank whose work is done on this device."""
        self._ident = threading.main_thread().ident
        self._device = device
        self._asking: threading.Thread | None = None

    def waits_for_others(self) -> bool:
        """Whether it is in a collective, or has given its GPU work that does not come to an end.

        A GPU does not end its work where a collective in it waits for another rank; the Python thread may stand
        anywhere then. Who holds up the others by something else than a collective leaves its GPU without work.
        Takes up to 0.2 s, and is to be asked only of a rank that seems stuck.
        """
        frame = sys._current_frames().get(self._ident or 0)
        return is_in_collective(frame) or self._gpu_is_busy()

    def _gpu_is_busy(self) -> bool:
        if self._device.type != "cuda":
            return False
        # The question itself blocks, and with it the thread that asks.
        if self._asking is None or not self._asking.is_alive():
            self._asking = threading.Thread(
                target=torch.cuda.synchronize, args=(self._device,), name="watchdog-gpu", daemon=True
            )
            self._asking.start()
        self._asking.join(_GPU_ANSWERS_WITHIN_SECONDS)
        return self._asking.is_alive()


def is_in_collective(frame: FrameType | None) -> bool:
    """Whether a thread with this innermost frame waits in a collective, or for one that was begun before."""
    if frame is None:
        return False
    file = frame.f_code.co_filename
    if any(part in file for part in _COLLECTIVES):
        return not any(part in file for part in _OF_ONE_RANK)
    # DeepSpeed waits for what it has begun in methods of that name, the innermost call of which may be wrapped.
    callers = (frame, frame.f_back)
    return any(
        caller is not None and caller.f_code.co_name == "wait" and _DEEPSPEED in caller.f_code.co_filename
        for caller in callers
    )


def own_stacks() -> bytes:
    """The stacks of all threads of this process, the innermost call of each first."""
    # Into memory first: the dump holds up all threads, and a pipe that nobody reads would hold up the dump.
    memory = os.memfd_create("stacks")
    try:
        faulthandler.dump_traceback(memory, all_threads=True)
        os.lseek(memory, 0, os.SEEK_SET)
        with os.fdopen(os.dup(memory), "rb") as file:
            return file.read()
    finally:
        os.close(memory)


def say(rank: int, text: str) -> None:
    """Writes a line for a rank to stderr, past all that Python buffers or locks."""
    _write(f"rank {rank}: {text}\n".encode())


def end(rank: int, verdict: Verdict, before_it_ends: Callable[[], None]) -> NoReturn:
    """Says what was found and this process's stacks, kills what cannot end by itself, and ends with the status."""
    try:
        # By a thread, which may block. It also writes out what was printed before.
        report = threading.Thread(target=_report, args=(rank, verdict), name="watchdog-report", daemon=True)
        report.start()
        report.join(_REPORT_SECONDS)
        before_it_ends()
        for process in verdict.unable_to_end:
            try:
                process.kill()
            except OSError as error:
                say(rank, f"process {process.pid} cannot be killed: {error.strerror}")
    finally:
        os._exit(verdict.exit_status)


def _report(rank: int, verdict: Verdict) -> None:
    say(rank, f"the watchdog ends this process: {verdict.finding}")
    if rank != verdict.found_by:
        for process in verdict.unable_to_end:
            if process.is_visible and not process.is_gone:
                say(rank, f"process {process.pid} of this host is {process.state}")
    _write(f"rank {rank}: its stacks\n".encode() + own_stacks())
    sys.stdout.flush()


def _write(text: bytes) -> None:
    while text:
        text = text[os.write(_STDERR, text) :]
