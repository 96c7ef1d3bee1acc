"""What a job demands of its ranks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Demands:
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
