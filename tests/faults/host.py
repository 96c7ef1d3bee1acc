"""What runs leave behind on this machine: processes, files that they share, listening sockets."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.forks import wait_until

MARK = "MEGASLM_TEST_RUN"
"""An environment variable that a run's processes inherit, whatever becomes of their parents."""
_SHARED_MEMORY = "/dev/shm/"
_HOST_FOLDERS = f"/megaslm-{os.getuid()}/"
_LISTENING = "0A"


class SharedFile(NamedTuple):
    """A file in shared memory, or in the folder of a run's processes; another one of that name has another inode."""

    path: Path
    inode: int

    def exists(self) -> bool:
        try:
            return self.path.stat().st_ino == self.inode
        except FileNotFoundError:
            return False


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


def listening_sockets(processes: Iterable[int]) -> set[str]:
    """The TCP sockets at which these processes listen, by their inodes: a port may soon be somebody else's."""
    return {inode for process in processes for inode in _socket_inodes(process)} & all_listening_sockets()


def all_listening_sockets() -> set[str]:
    """Those at which anybody listens."""
    tables = [Path(table).read_text().splitlines()[1:] for table in ("/proc/net/tcp", "/proc/net/tcp6")]
    rows = [line.split() for table in tables for line in table]
    return {columns[9] for columns in rows if columns[3] == _LISTENING}


def shared_files_of(processes: Iterable[int]) -> set[SharedFile]:
    """What these processes have mapped of what they may share."""
    rows = [line.split(maxsplit=5) for process in processes for line in _maps(process).splitlines()]
    shared = [row for row in rows if row[-1].startswith(_SHARED_MEMORY) or _HOST_FOLDERS in row[-1]]
    mapped = {SharedFile(Path(row[5]), int(row[4])) for row in shared}
    return {each for each in mapped if each.exists()}


def wait_until_gone(found: Callable[[], set[int] | set[SharedFile]]) -> None:
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
