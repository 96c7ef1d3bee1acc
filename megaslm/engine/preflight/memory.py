"""How much memory a process may still take."""

from collections.abc import Iterator
from pathlib import Path

_KIB = 1024


def available_memory_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """What the host has left, or the control groups of this process where a scheduler or a container limits them.

    Args:
        proc: where the kernel tells of memory and of this process.
        groups: the root of control groups of version 2; those of version 1 are not looked at.
    """
    return min([_available_on_host(proc / "meminfo"), *_left_in_groups(proc / "self" / "cgroup", groups)])


def _available_on_host(meminfo: Path) -> int:
    lines = meminfo.read_text(encoding="ascii").splitlines()
    (available,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(available) * _KIB


def _left_in_groups(membership: Path, root: Path) -> Iterator[int]:
    """Of each limited group that the process is in, from the outermost on."""
    for line in membership.read_text(encoding="utf-8").splitlines():
        if line.startswith("0::"):
            names = [name for name in line.removeprefix("0::").split("/") if name]
            for depth in range(len(names) + 1):
                yield from _left_in(root.joinpath(*names[:depth]))


def _left_in(group: Path) -> Iterator[int]:
    limit_file = group / "memory.max"
    limit = limit_file.read_text(encoding="ascii").strip() if limit_file.is_file() else "max"
    if limit != "max":
        used = int((group / "memory.current").read_text(encoding="ascii"))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        # Files that were read and are no longer in use count as used, and give way.
        yield int(limit) - used + int(statistics["inactive_file"])
