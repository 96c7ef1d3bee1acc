"""What runs leave behind on this machine: processes, shared memory, listening ports."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.forks import wait_until

MARK = "MEGASLM_TEST_RUN"
"""An environment variable that a run's processes inherit, whatever becomes of their parents."""
_SHARED_MEMORY = Path("/dev/shm")
_LISTENING = "0A"


def processes_of(mark: str) -> set[int]:
    """The living processes of the run that was started with this mark."""
    wanted = f"{MARK}={mark}".encode()
    return {process for process in _processes() if wanted in _environment(process).split(b"\0") and is_alive(process)}


def is_alive(process: int) -> bool:
    """Whether the process runs or can run again: it is neither gone nor waiting to be buried."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(") ")[2][0] not in "ZX"


def listening_ports(processes: set[int]) -> set[int]:
    """The TCP ports at which these processes listen."""
    inodes = {inode for process in processes for inode in _socket_inodes(process)}
    return {port for port, inode in _listening_sockets() if inode in inodes}


def taken_ports() -> set[int]:
    """The TCP ports at which anybody listens."""
    return {port for port, _ in _listening_sockets()}


def ownerless_shared_memory() -> set[str]:
    """Objects in shared memory that no process of this machine has mapped or open any more."""
    objects = {str(path) for path in _SHARED_MEMORY.iterdir() if path.is_file()}
    for process in _processes():
        objects -= {path for path in objects if path in _maps(process)}
        objects -= set(_open_files(process))
    return objects


def wait_until_gone(found: Callable[[], set[int] | set[str]]) -> None:
    """Waits until there is nothing any more: loader processes notice the end of their rank by themselves."""
    wait_until(lambda: not found())


def environment_of(process: int) -> dict[str, str]:
    """What a process was started with; empty where it is gone."""
    pairs = (pair.partition(b"=") for pair in _environment(process).split(b"\0") if pair)
    return {name.decode(): value.decode(errors="replace") for name, _, value in pairs}


def _processes() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdecimal())  # noqa: PTH208


def _environment(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def _maps(process: int) -> str:
    try:
        return Path(f"/proc/{process}/maps").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def _open_files(process: int) -> list[str]:
    try:
        return [str(path.readlink()) for path in Path(f"/proc/{process}/fd").iterdir()]
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []


def _socket_inodes(process: int) -> list[str]:
    links = _open_files(process)
    return [link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:[")]


def _listening_sockets() -> Iterator[tuple[int, str]]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == _LISTENING:
                yield int(columns[1].rpartition(":")[2], 16), columns[9]
