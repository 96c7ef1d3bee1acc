"""In which order a process brings files to the disk and gives them their names."""

import os
from pathlib import Path
from typing import Any

import pytest

Call = tuple[str, str]
"""`sync` or `rename`, and the name of the file or folder: of a rename the new one."""


def record_disk_order(patch: pytest.MonkeyPatch) -> list[Call]:
    """The calls from now on, of all threads, until `patch` is undone."""
    made: list[Call] = []
    sync = os.fsync

    def record_sync(descriptor: int) -> None:
        made.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        sync(descriptor)

    def recording(rename: Any) -> Any:
        def record(source: Any, target: Any, **options: Any) -> None:
            made.append(("rename", Path(target).name))
            rename(source, target, **options)

        return record

    patch.setattr(os, "fsync", record_sync)
    patch.setattr(os, "replace", recording(os.replace))
    patch.setattr(os, "rename", recording(os.rename))
    return made
