"""Files and folders that are either wholly there or not there at all, even after a crash of the machine."""

import os
import shutil
from pathlib import Path

UNFINISHED = ".unfinished-"
"""Opens the name of whatever is still being written; a leading dot keeps it out of globs."""


def unfinished(path: Path) -> Path:
    """Where `path` is written before it is complete: beside it, so that a rename is enough."""
    return path.with_name(UNFINISHED + path.name)


def write_file(path: Path, content: str) -> None:
    """Write UTF-8 text to `path`, which afterwards holds either its former content or all of the new one."""
    temporary = unfinished(path)
    temporary.write_text(content, encoding="utf-8")
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def start_folder(path: Path) -> Path:
    """An empty folder in which to build `path`; what an earlier attempt left in it is removed."""
    temporary = unfinished(path)
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    return temporary


def finish_folder(path: Path) -> None:
    """Give the folder of `start_folder` its name, replacing what carried that name."""
    temporary = unfinished(path)
    for entry in sorted(temporary.rglob("*")):
        sync(entry)
    sync(temporary)
    if path.exists():
        shutil.rmtree(path)
    temporary.rename(path)
    sync(path.parent)


def abandon_folder(path: Path) -> None:
    """Remove what `start_folder` began."""
    shutil.rmtree(unfinished(path), ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file's or folder's content has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
