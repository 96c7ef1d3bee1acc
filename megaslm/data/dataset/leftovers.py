"""What lies in a dataset's folder and is no part of the dataset."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from megaslm.data.dataset.manifest import BESIDE_ROWS, MANIFEST
from megaslm.data.dataset.shard_index import INDEX, ShardIndex
from megaslm.jobs.durable import UNFINISHED

_OF_AN_INTERRUPTED_RUN = (UNFINISHED, ".prepare", ".score", ".mask")


def files_of_part(folder: Path, index: ShardIndex) -> Iterator[Path]:
    """The files of a part that lies in `folder`: those that were written, and those that `streaming` may unpack."""
    yield folder / INDEX
    for shard in index.shards:
        yield folder / shard.stored.basename
        yield folder / shard.raw_data.basename


def leftovers(dataset: Path, known: Iterable[Path]) -> Iterator[Path]:
    """What is in the folder and is none of the `known` files and folders below it, sorted.

    A folder in which nothing is known is given as one; into one that is known itself nobody looks.
    """
    ours = {*known, dataset / MANIFEST, *(dataset / name for name in BESIDE_ROWS)}
    yield from _unknown(dataset, ours, holders={parent for path in ours for parent in path.parents})


def what_it_is(path: Path) -> str:
    """What to say of a leftover."""
    if path.name.startswith(_OF_AN_INTERRUPTED_RUN):
        return "was left by a run that was interrupted; it may be removed when none is at work here"
    return "is no part of this dataset"


def _unknown(folder: Path, known: set[Path], holders: set[Path]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path in known:
            continue
        if path in holders:
            yield from _unknown(path, known, holders)
        else:
            yield path
