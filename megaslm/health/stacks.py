"""The stacks and the end of this process, also where anything may block: exit handlers, stderr's lock, a full pipe."""

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
"""Includes the last one because waiting for an earlier collective runs no Python code of torch's."""
_OF_ONE_RANK = ("/torch/distributed/checkpoint/",)
_DEEPSPEED = "/deepspeed/"
_GPU_ANSWERS_WITHIN_SECONDS = 0.2
_REPORT_SECONDS = 1.0


class MainThread:
    """The main thread, seen from another thread."""

    def __init__(self, device: torch.device) -> None:
        self._ident = threading.main_thread().ident
        self._device = device
        self._asking: threading.Thread | None = None

    def waits_for_others(self) -> bool:
        """Whether it is in a collective, or has given its GPU work that does not end.

        A GPU does not finish its work while a collective in it waits for another rank; the Python thread may be
        anywhere then. A rank that delays the others outside of a collective leaves its GPU idle. Takes up to 0.2 s, so
        call it only for a rank that seems stuck.
        """
        frame = sys._current_frames().get(self._ident or 0)
        return is_in_collective(frame) or self._gpu_is_busy()

    def _gpu_is_busy(self) -> bool:
        if self._device.type != "cuda":
            return False
        # The query itself may block, and with it the calling thread.
        if self._asking is None or not self._asking.is_alive():
            self._asking = threading.Thread(
                target=torch.cuda.synchronize, args=(self._device,), name="watchdog-gpu", daemon=True
            )
            self._asking.start()
        self._asking.join(_GPU_ANSWERS_WITHIN_SECONDS)
        return self._asking.is_alive()


def is_in_collective(frame: FrameType | None) -> bool:
    """Whether a thread with this innermost frame waits in a collective, or for an earlier one."""
    if frame is None:
        return False
    file = frame.f_code.co_filename
    if any(part in file for part in _COLLECTIVES):
        return not any(part in file for part in _OF_ONE_RANK)
    # DeepSpeed waits for earlier collectives in methods of that name, whose innermost call may be wrapped.
    callers = (frame, frame.f_back)
    return any(
        caller is not None and caller.f_code.co_name == "wait" and _DEEPSPEED in caller.f_code.co_filename
        for caller in callers
    )


def own_stacks() -> bytes:
    """The stacks of all threads of this process, innermost call first."""
    # Into memory first: the dump stops all threads, and a full pipe would block the dump.
    memory = os.memfd_create("stacks")
    try:
        faulthandler.dump_traceback(memory, all_threads=True)
        os.lseek(memory, 0, os.SEEK_SET)
        with os.fdopen(os.dup(memory), "rb") as file:
            return file.read()
    finally:
        os.close(memory)


def say(rank: int, text: str) -> None:
    """Writes a line for a rank to stderr, past Python's buffers and locks."""
    _write(f"rank {rank}: {text}\n".encode())


def end(rank: int, verdict: Verdict, before_it_ends: Callable[[], None]) -> NoReturn:
    """Prints the finding and this process's stacks, kills processes that cannot end by themselves, and exits."""
    try:
        # In a thread, because it may block. It also flushes earlier output.
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
    # The descriptor 2 of a command is the log of its libraries.
    errors = sys.stderr.fileno()
    while text:
        text = text[os.write(errors, text) :]
