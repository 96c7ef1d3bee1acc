"""A job's requirements, the findings of the preflight, and the names of ranks that differ from the others."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megaslm.engine.rank_names import Rank, name_ranks


@dataclass(frozen=True)
class Requirements:
    """What all ranks must have in common, and what their hosts need room for."""

    settings: Mapping[str, str]
    """The settings of the job, equal on all ranks."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Files that must be equal on all hosts, by their names in messages."""
    checkpoints: Path | None = None
    """The folder of the checkpoints, which may not exist yet; None without checkpoints."""
    checkpoint_bytes: int = 0
    """Size of one checkpoint on the disk, and of its copies in the memory of all ranks together; 0 where not known
    yet."""
    cache: Path | None = None
    """Each host's folder for fetched data; None where nothing is fetched."""


@dataclass(frozen=True)
class Finding:
    """A problem that the preflight found."""

    text: str
    ends_the_job: bool = True
    """Whether the job cannot begin; otherwise the finding is a warning."""


@dataclass(frozen=True)
class Trait:
    """A value that should be equal on all ranks."""

    name: str
    values: Sequence[str]
    """In rank order."""
    remedy: str
    must_agree: bool = True
    """Whether the job cannot begin where ranks differ in it."""


def disagreements(trait: Trait, ranks: Sequence[Rank]) -> Iterator[Finding]:
    """A finding for each value but the majority's; without a majority, one finding that lists all values."""
    sides: dict[str, list[Rank]] = {}
    for value, rank in zip(trait.values, ranks, strict=True):
        sides.setdefault(value, []).append(rank)
    if len(sides) == 1:
        return
    usual = max(sides, key=lambda value: len(sides[value]))
    count = len(sides[usual])
    if 2 * count <= len(ranks):
        found = ", ".join(f"{value} for {name_ranks(side)}" for value, side in sides.items())
        yield Finding(f"{trait.name} is {found}: {trait.remedy}", trait.must_agree)
        return
    for value, side in sides.items():
        if value != usual:
            found = f"{trait.name} is {value}, that of {count} other ranks {usual}"
            yield Finding(f"{name_ranks(side)}: {found}: {trait.remedy}", trait.must_agree)
