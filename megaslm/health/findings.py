"""What a job requirements of its ranks, what preflight finds, and how ranks are named that differ from the others."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megaslm.engine.rank_names import Rank, name_ranks


@dataclass(frozen=True)
class Requirements:
    """What all ranks have to have in common, and what their hosts need room for."""

    settings: Mapping[str, str]
    """What is to be done; the same on all ranks."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Files of one content on all hosts, by what messages call them."""
    checkpoints: Path | None = None
    """The folder of the checkpoints, which need not exist yet; null where there are none."""
    checkpoint_bytes: int = 0
    """What one checkpoint takes on the disk, and its copies in the memory of all ranks together; 0 where that is not
    known yet."""
    cache: Path | None = None
    """Where each host keeps what it fetches; null where nothing is fetched."""


@dataclass(frozen=True)
class Finding:
    """Something that is not as it ought to be."""

    text: str
    ends_the_job: bool = True
    """Whether the job cannot begin; else it is a warning."""


@dataclass(frozen=True)
class Trait:
    """Something that all ranks ought to have in common."""

    name: str
    values: Sequence[str]
    """In rank order."""
    remedy: str
    must_agree: bool = True
    """Whether a job cannot begin in which ranks differ in it."""


def disagreements(trait: Trait, ranks: Sequence[Rank]) -> Iterator[Finding]:
    """A finding for each value but that of the majority; where there is no majority, one that names all sides."""
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
