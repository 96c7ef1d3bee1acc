"""Processes as the kernel's /proc shows them."""

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
_STATE_FIELD, _STARTED_FIELD = 0, 19  # Of /proc/PID/stat, counted from behind the process's name.


@dataclass(frozen=True)
class Process:
    """One process of one host, told apart from others that have or had its number."""

    host: str
    boot: str
    """Drawn by the kernel at each start of a host. Names do not tell hosts apart: some are all called alike."""
    pid_namespace: str
    """Containers of one host count their processes apart."""
    pid: int
    started_ticks: int
    """When it was started, in clock ticks since the host was."""

    @classmethod
    def own(cls) -> Self:
        """This process."""
        pid = os.getpid()
        return cls(*_here(), pid, int(_stat(pid)[_STARTED_FIELD]))

    @property
    def is_visible(self) -> bool:
        """Whether it is where this process can look at it."""
        return (self.host, self.boot, self.pid_namespace) == _here()

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended."""
        return self.is_visible and self.state == _GONE

    @property
    def state(self) -> str:
        """What it does, in words."""
        if not self.is_visible:
            return "not to be seen from here"
        try:
            stat = _stat(self.pid)
        except (FileNotFoundError, ProcessLookupError):
            return _GONE
        except OSError as error:
            return f"not to be read ({error.strerror})"
        # A process that has ended stays listed until its parent has asked for its status.
        if int(stat[_STARTED_FIELD]) != self.started_ticks or stat[_STATE_FIELD] in "ZX":
            return _GONE
        return f"{_STATES.get(stat[_STATE_FIELD], 'in an unknown state')} ({stat[_STATE_FIELD]})"

    def kill(self) -> None:
        """Ends it at once, where it can be seen from here; another process that has got its number is not touched."""
        if not self.is_visible:
            return
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(self.pid)
            try:
                # The handle stays with one process: whose state this is will get the signal.
                if not self.is_gone:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)


def _stat(pid: int) -> list[str]:
    # The name, which stands in brackets, may hold blanks and brackets itself.
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


@cache
def _here() -> tuple[str, str, str]:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname(), boot, str(Path("/proc/self/ns/pid").readlink())
