"""A file system of limited size, in memory."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[None]:
    """Within the context `folder` is a file system of its own, with so much room; needs root."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def grow(folder: Path, mib: int) -> None:
    """Gives a small disk more room, and leaves what is on it."""
    subprocess.run(["mount", "-o", f"remount,size={mib}m", folder], check=True)


def fill(disk: Path) -> Path:
    """Takes all the room that there is, by a file."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            return filler
