"""The index of a split's domain: those of its parts, joined in the order of their numbers."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from megaslm.data.dataset.damage import Damaged
from megaslm.data.dataset.manifest import Part
from megaslm.data.dataset.shard_index import (
    INDEX,
    ShardIndex,
    check_files,
    parse_index,
    read_index,
    read_index_bytes,
    write_index,
)
from megaslm.errors import DataError

_PART_FOLDER = re.compile(r"part-\d{5,}")


def merge_index(domain_folder: Path, parts: Sequence[Part]) -> int:
    """Join the parts' indices into `domain_folder`/index.json, in the order of their numbers; gives the rows in all.

    Raises DataError for a name that is not a part's, one named twice, and a part that is missing, not named, or not the
    one that its record tells of: another index, other rows, or shards that are missing or of another size.
    """
    for damage in foreign_parts(domain_folder, parts):
        raise damage
    merged = joined(read_part_indices(domain_folder, parts))
    check_files(domain_folder, merged)
    write_index(domain_folder, merged)
    return merged.rows


def read_part_indices(domain_folder: Path, parts: Sequence[Part]) -> dict[str, ShardIndex]:
    """The index of each part by its name, in the order of their numbers; raises what `read_part_index` does."""
    return {part.name: read_part_index(domain_folder, part) for part in in_order(domain_folder, parts)}


def read_part_index(domain_folder: Path, part: Part) -> ShardIndex:
    """The index of a part. Raises Damaged where it is not the one that the part's record tells of."""
    folder = domain_folder / part.name
    if not folder.is_dir():
        raise Damaged(folder, f"is missing, a part of {part.rows} rows")
    content = read_index_bytes(folder)
    index = parse_index(folder, content)
    found = hashlib.sha256(content).hexdigest()
    if found != part.index_sha256:
        raise Damaged(
            folder / INDEX,
            f"is not the one that was written with this part: its SHA-256 is {found[:12]}, the manifest says "
            f"{part.index_sha256[:12]}",
        )
    if (index.rows, index.stored_bytes) != (part.rows, part.bytes):
        raise Damaged(
            folder / INDEX,
            f"lists {index.rows} rows in {index.stored_bytes} bytes, the manifest says {part.rows} rows in "
            f"{part.bytes} bytes",
        )
    return index


def joined(indices: dict[str, ShardIndex]) -> ShardIndex:
    """The indices of parts, given by name, as one that lies in the folder above them."""
    return ShardIndex(shards=tuple(shard.inside(name) for name, index in indices.items() for shard in index.shards))


def check_merged(domain_folder: Path, expected: ShardIndex) -> None:
    """Raise Damaged unless `domain_folder`/index.json is, byte for byte, what `merge_index` writes for `expected`."""
    content = read_index_bytes(domain_folder)
    if content == expected.to_json().encode("utf-8"):
        return
    found = read_index(domain_folder)
    path = domain_folder / INDEX
    if found.rows != expected.rows:
        raise Damaged(path, f"lists {found.rows} rows, its parts {expected.rows}")
    if found != expected:
        raise Damaged(path, f"does not list the {len(expected.shards)} shards of its parts in order, as they are there")
    raise Damaged(path, "was changed since it was written, though it still says the same")


def in_order(domain_folder: Path, parts: Sequence[Part]) -> list[Part]:
    """The parts by their numbers. Raises DataError for a name that is not a part's, or one named twice."""
    for part in parts:
        if not _PART_FOLDER.fullmatch(part.name):
            raise DataError(f"{domain_folder}: {part.name}: not the name of a part, such as part-00000")
    by_number = Counter(_number(part.name) for part in parts)
    for part in parts:
        if by_number[_number(part.name)] > 1:
            raise DataError(f"{domain_folder}: {part.name} is named twice")
    return sorted(parts, key=lambda part: _number(part.name))


def foreign_parts(domain_folder: Path, parts: Sequence[Part]) -> Iterator[Damaged]:
    """Every folder of `domain_folder` that has the name of a part and is none of `parts`."""
    names = {part.name for part in parts}
    there = sorted(path for path in domain_folder.glob("part-*") if _PART_FOLDER.fullmatch(path.name))
    for path in there:
        if path.name not in names and path.is_dir():
            yield Damaged(path, f"belongs to another dataset: it is none of the {len(parts)} parts of this one")


def _number(part_name: str) -> int:
    return int(part_name.removeprefix("part-"))
