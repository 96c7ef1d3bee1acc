"""Whether one part is, byte for byte, what was written."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megaslm.data.dataset.damage import Damaged
from megaslm.data.dataset.layout import check_columns
from megaslm.data.dataset.manifest import Part
from megaslm.data.dataset.merged_index import read_part_index
from megaslm.data.dataset.row_check import RowCheck, RowRules
from megaslm.data.dataset.shard_index import Shard, ShardIndex, check_size
from megaslm.data.dataset.shard_rows import require_checksum, rows_in, unpacked

OnBytes = Callable[[int], None]
"""Called with the bytes that were read since the last call, from any thread."""


@dataclass(frozen=True)
class CheckedPart:
    """What was found in one part."""

    index: ShardIndex | None
    """Its index; null where that is damaged, and its shards could not be looked at."""
    targets: int | None
    """Valid targets of its rows; null where not all of them could be read."""
    damages: tuple[Damaged, ...]
    """Everything that is wrong with it."""


def check_part(domain_folder: Path, part: Part, rules: RowRules, on_bytes: OnBytes) -> CheckedPart:
    """Read all of a part, each byte once, and compare it with its record and with what rows may hold."""
    try:
        index = read_part_index(domain_folder, part)
    except Damaged as damage:
        return CheckedPart(None, None, (damage,))
    folder = domain_folder / part.name
    check, damages, whole = RowCheck(rules), list[Damaged](), True
    for shard in index.shards:
        path = folder / shard.stored.basename
        try:
            rows = _read(path, shard, rules)
            damages += check.add(path, rows)
            damages += _check_unpacked(folder, shard)
        except Damaged as damage:
            damages.append(damage)
            whole = False
        on_bytes(shard.stored.bytes)
    # Of a part that lacks rows the hashes differ, and saying so would say nothing new.
    if whole:
        damages += check.compare(folder, part)
    return CheckedPart(index, check.targets if whole else None, tuple(damages))


def _read(path: Path, shard: Shard, rules: RowRules) -> NDArray[np.void]:
    """The rows of a shard. Raises Damaged where the file is not what the index says."""
    check_columns(path, shard, rules.row_format.columns)
    check_size(path, shard)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Damaged(path, f"cannot be read: {error.strerror}") from error
    require_checksum(path, content, shard.stored)
    if shard.zip_data is None:
        return rows_in(path, np.frombuffer(content, dtype=np.uint8), shard)
    return rows_in(path, unpacked(path, content, shard), shard)


def _check_unpacked(folder: Path, shard: Shard) -> Iterator[Damaged]:
    """Where `streaming` has unpacked a shard, it reads that file from then on, without a further look."""
    path = folder / shard.raw_data.basename
    if shard.zip_data is not None and path.is_file():
        try:
            require_checksum(path, path.read_bytes(), shard.raw_data)
        except Damaged as damage:
            yield Damaged(path, f"{damage.finding}; it was unpacked from {shard.zip_data.basename} and may be removed")
