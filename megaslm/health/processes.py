"""Processes, read from the kernel's /proc."""

import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

_STATES = {
    "R": "running",
    "S": "asleep",
    "D": "waiting for a disk or a network drive",
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
}
_GONE = "gone"
_STATE_FIELD, _STARTED_FIELD = 0, 19  # Of /proc/PID/stat, counted after the process's name.


@dataclass(frozen=True)
class Process:
    """One process of one host, distinct from others that have or had the same process id."""

    host: str
    boot: str
    """Boot id, drawn by the kernel at each boot. Host names need not be unique."""
    pid_namespace: str
    """PID namespace. Containers of one host count their processes separately."""
    pid: int
    started_ticks: int
    """Start time, in clock ticks since the host's boot."""

    @classmethod
    def own(cls) -> Self:
        """The process that calls this."""
        pid = os.getpid()
        return cls(*_here(), pid, int(_stat(pid)[_STARTED_FIELD]))

    @property
    def is_visible(self) -> bool:
        """Whether this process can see it: same host, same namespace."""
        return (self.host, self.boot, self.pid_namespace) == _here()

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended."""
        return self.is_visible and self.state == _GONE

    @property
    def state(self) -> str:
        """Its state, in words."""
        if not self.is_visible:
            return "not to be seen from here"
        try:
            stat = _stat(self.pid)
        except (FileNotFoundError, ProcessLookupError):
            return _GONE
        except OSError as error:
            return f"not to be read ({error.strerror})"
        # A process that has ended stays listed until its parent has read its exit status.
        if int(stat[_STARTED_FIELD]) != self.started_ticks or stat[_STATE_FIELD] in "ZX":
            return _GONE
        return f"{_STATES.get(stat[_STATE_FIELD], 'in an unknown state')} ({stat[_STATE_FIELD]})"

    def kill(self) -> None:
        """Ends it at once, where it can be seen from here. A new process with the same id is not touched."""
        if not self.is_visible:
            return
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(self.pid)
            try:
                # The handle refers to one process, so the check and the signal concern the same one.
                if not self.is_gone:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)


def _stat(pid: int) -> list[str]:
    # The name stands in brackets, and may itself contain blanks and brackets.
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


@cache
def _here() -> tuple[str, str, str]:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname(), boot, str(Path("/proc/self/ns/pid").readlink())
