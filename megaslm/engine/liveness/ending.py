"""The end of a process in which anything may block: exit handlers, a lock on stderr, a pipe that nobody reads."""

import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from megaslm.engine.liveness.stacks import own_stacks
from megaslm.engine.liveness.verdict import Verdict

_REPORT_SECONDS = 1.0
_STDERR = 2


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
