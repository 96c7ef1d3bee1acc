"""What a rank knows of itself and of its host."""

import hashlib
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from megaslm.engine.device_name import device_name
from megaslm.engine.preflight.clocks import ClockReading
from megaslm.engine.preflight.demands import Demands
from megaslm.engine.preflight.memory import available_memory_bytes
from megaslm.engine.rank_names import Rank

LIBRARIES = ("torch", "deepspeed", "transformers", "mosaicml-streaming")
"""Whose versions have to be alike."""

_SHARED_MEMORY = Path("/dev/shm")
_DRIVER = Path("/sys/module/nvidia/version")


@dataclass(frozen=True)
class Disk:
    """The room on a file system."""

    folder: str
    free_bytes: int

    @classmethod
    def of(cls, folder: Path) -> "Disk | None":
        """That on which a folder lies, or will lie once it is made; None where this process may not look."""
        try:
            existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
            return cls(str(folder), shutil.disk_usage(existing).free)
        except OSError:
            # Whether it may write there is found out when it does.
            return None


@dataclass(frozen=True)
class RankFacts:
    """All that is compared, beside the code itself."""

    rank: Rank
    python: str
    """Its version."""
    versions: dict[str, str]
    """Those of LIBRARIES."""
    gpus: list[str]
    """The names of those that the rank sees."""
    driver: str
    """The version of the GPUs' driver; `none` where there is none."""
    settings: dict[str, str]
    """As in `Demands`."""
    files: dict[str, str]
    """A hash of each of the files of `Demands`, or why it cannot be read."""
    clock: ClockReading
    memory_bytes: int
    """What the processes of the host can still take."""
    checkpoint_bytes: int
    """As in `Demands`, as far as this rank can tell."""
    checkpoints: Disk | None
    cache: Disk | None
    shared_memory: Disk | None


def look(rank: Rank, demands: Demands, clock: ClockReading) -> RankFacts:
    """Looks at this process and its host; nothing is written."""
    return RankFacts(
        rank=rank,
        python=platform.python_version(),
        versions={library: version(library) for library in LIBRARIES},
        gpus=[device_name(torch.device("cuda", number)) for number in range(torch.cuda.device_count())],
        driver=_DRIVER.read_text(encoding="ascii").strip() if _DRIVER.exists() else "none",
        settings=dict(demands.settings),
        files={name: _content_of(path) for name, path in demands.files.items()},
        clock=clock,
        memory_bytes=available_memory_bytes(),
        checkpoint_bytes=demands.checkpoint_bytes,
        checkpoints=None if demands.checkpoints is None else Disk.of(demands.checkpoints),
        cache=None if demands.cache is None else Disk.of(demands.cache),
        shared_memory=Disk.of(_SHARED_MEMORY) if _SHARED_MEMORY.exists() else None,
    )


def by_host(all_facts: Sequence[RankFacts]) -> dict[str, list[RankFacts]]:
    """The facts of each host's ranks, in rank order."""
    hosts: dict[str, list[RankFacts]] = {}
    for facts in all_facts:
        hosts.setdefault(facts.rank.host, []).append(facts)
    return hosts


def _content_of(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        return f"unreadable ({error.strerror})"
