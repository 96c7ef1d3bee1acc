"""The free space of file systems, and whether it is enough for checkpoints."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megaslm.health.findings import Finding


@dataclass(frozen=True)
class Disk:
    """The free space of a file system."""

    folder: str
    free_bytes: int

    @classmethod
    def of(cls, folder: Path) -> "Disk | None":
        """The disk of a folder that need not exist yet; None where this process has no access."""
        try:
            existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
            return cls(str(folder), shutil.disk_usage(existing).free)
        except OSError:
            # Write permission shows at the first write.
            return None


def room_for_checkpoints(disk: Disk, host: str, needed_bytes: int) -> Iterator[Finding]:
    """A finding where `disk`, as `host` sees it, has no room for one checkpoint of `needed_bytes`, or for one only."""
    found = f"{disk.folder} has room for {size_of(disk.free_bytes)}, seen from {host}; a checkpoint takes "
    remedy = "make room, or set run_dir to another file system"
    if disk.free_bytes < needed_bytes:
        yield Finding(f"{found}{size_of(needed_bytes)}: {remedy}")
    elif disk.free_bytes < 2 * needed_bytes:
        yield Finding(f"{found}{size_of(needed_bytes)}, and there are two at a time: {remedy}", ends_the_job=False)


def size_of(count_bytes: int) -> str:
    """A number of bytes in words, such as 1.5 GiB."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count_bytes >= factor:
            return f"{count_bytes / factor:,.1f} {unit}"
    return f"{count_bytes} bytes"
