"""What the self-test runs as a program: it tries to reach what programs must not reach.

It is read as text, so it imports the standard library alone.
"""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Collection
from pathlib import Path


def reached(outside: str, environment: Collection[str]) -> list[str]:
    """The names of what could be done. `outside` is a file of the user's; `environment` are the variables of inside."""

    def fork() -> None:
        if os.fork() == 0:
            os._exit(0)

    def read() -> None:
        Path(outside).read_text(encoding="utf-8")

    def write() -> None:
        Path(outside).write_text("of the program", encoding="utf-8")

    def write_beside() -> None:
        Path(f"{outside}.beside").touch()

    def change_mode() -> None:
        Path(outside).chmod(0o777)

    def find_variables() -> None:
        if set(os.environ) <= set(environment):
            raise OSError

    tried: dict[str, Callable[[], object]] = {
        "open a socket": socket.socket,
        "fork": fork,
        "start a program": lambda: os.execv("/bin/true", ["true"]),
        "read a file of yours": read,
        "write a file of yours": write,
        "write beside a file of yours": write_beside,
        "change a file of yours": change_mode,
        "see your environment": find_variables,
        "signal its parent": lambda: os.kill(os.getppid(), 0),
        "signal all": lambda: os.kill(-1, signal.SIGCONT),
    }
    found = []
    for what, action in tried.items():
        with contextlib.suppress(OSError):
            action()
            found.append(what)
    return found
