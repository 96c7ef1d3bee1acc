"""A rank's facts about itself and its host: code, libraries, devices, memory, clocks."""

import hashlib
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

import megaslm
from megaslm.engine.rank_names import Rank
from megaslm.health.clocks import ClockReading
from megaslm.health.disk import Disk
from megaslm.health.findings import Requirements, Trait
from megaslm.model.flops import device_name

_KIB = 1024
LIBRARIES = ("torch", "deepspeed", "transformers", "mosaicml-streaming")
"""Libraries whose versions must be equal."""

_SHARED_MEMORY = Path("/dev/shm")
_DRIVER = Path("/sys/module/nvidia/version")


def available_memory_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory left on the host, or in this process's control groups where a scheduler or a container limits them.

    Args:
        proc: the kernel's files on memory and on this process.
        groups: the root of control groups of version 2. Version 1 is not supported.
    """
    return min([_available_on_host(proc / "meminfo"), *_left_in_groups(proc / "self" / "cgroup", groups)])


def resident_bytes(which: Literal["VmRSS", "VmHWM"]) -> int:
    """Resident memory of this process: now (VmRSS), or the most so far (VmHWM).

    Not `ru_maxrss`, which a process inherits from the one that started it.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith(f"{which}:"))
    return int(found) * _KIB


def _available_on_host(meminfo: Path) -> int:
    lines = meminfo.read_text(encoding="ascii").splitlines()
    (available,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(available) * _KIB


def _left_in_groups(membership: Path, root: Path) -> Iterator[int]:
    """Bytes left in each limited group of the process, from the outermost on."""
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
        # Cached files count as used, but give way.
        yield int(limit) - used + int(statistics["inactive_file"])


@dataclass(frozen=True)
class Code:
    """A rank's copy of MegaSLM. Ranks of different versions exchange this, so its fields must never change."""

    rank: Rank
    version: str
    sources_sha256: str

    @classmethod
    def of(cls, rank: Rank) -> "Code":
        """Reads the package that this process runs."""
        return cls(rank, megaslm.__version__, sources_sha256(Path(megaslm.__file__).parent))


def sources_sha256(package: Path) -> str:
    """SHA-256 of names and contents of all Python files of a package, in the order of their paths."""
    total = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{digest}  {path.relative_to(package).as_posix()}\n".encode())
    return total.hexdigest()


def code_trait(codes: Sequence[Code]) -> Trait:
    """The trait that all ranks run the same code."""
    return Trait(
        "megaslm's code",
        [f"{code.version} ({code.sources_sha256[:12]})" for code in codes],
        "install the same version on all hosts",
    )


@dataclass(frozen=True)
class RankFacts:
    """All facts that are compared, besides the code."""

    rank: Rank
    python: str
    versions: dict[str, str]
    """Versions of LIBRARIES."""
    gpus: list[str]
    """The names of the GPUs that the rank sees."""
    driver: str
    """The version of the GPUs' driver; `none` where there is none."""
    settings: dict[str, str]
    """As in `Requirements`."""
    files: dict[str, str]
    """A hash of each file in `Requirements`, or why it cannot be read."""
    clock: ClockReading
    memory_bytes: int
    """Memory that the processes of the host can still allocate."""
    checkpoint_bytes: int
    """As in `Requirements`, as far as this rank knows."""
    checkpoints: Disk | None
    cache: Disk | None
    shared_memory: Disk | None


def look(rank: Rank, requirements: Requirements, clock: ClockReading) -> RankFacts:
    """Reads the facts of this process and its host; writes nothing."""
    return RankFacts(
        rank=rank,
        python=platform.python_version(),
        versions={library: version(library) for library in LIBRARIES},
        gpus=[device_name(torch.device("cuda", number)) for number in range(torch.cuda.device_count())],
        driver=_DRIVER.read_text(encoding="ascii").strip() if _DRIVER.exists() else "none",
        settings=dict(requirements.settings),
        files={name: _content_of(path) for name, path in requirements.files.items()},
        clock=clock,
        memory_bytes=available_memory_bytes(),
        checkpoint_bytes=requirements.checkpoint_bytes,
        checkpoints=None if requirements.checkpoints is None else Disk.of(requirements.checkpoints),
        cache=None if requirements.cache is None else Disk.of(requirements.cache),
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
