"""The index.json of a folder of MDS shards, checked. A domain's index joins its parts' indices, in order."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from megaslm.dataset.manifest import Part
from megaslm.errors import CorruptData, DataError
from megaslm.files import write_file

INDEX = "index.json"
CHECKSUM = "xxh3_64"
"""The algorithm of the shards' checksums in an index."""
_NUMBERS = (
    *("int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
"""Encodings of one number per row, named as in numpy."""
_PART_FOLDER = re.compile(r"part-\d{5,}")


def _within_folder(name: str) -> str:
    """A foreign index must not lead readers or fetchers to other files of this machine."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("leads out of the folder of its index")
    return name


class ShardFile(BaseModel):
    """A shard as a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    basename: Annotated[str, AfterValidator(_within_folder)]
    """Its path, relative to the index's folder and inside it."""
    bytes: int
    hashes: dict[str, str]
    """Algorithm to checksum."""


class Shard(BaseModel):
    """One shard's entry."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int
    raw_data: ShardFile
    zip_data: ShardFile | None
    version: Literal[2]
    format: Literal["mds"]
    compression: str | None
    hashes: tuple[str, ...]
    size_limit: int | None
    column_names: tuple[str, ...]
    column_encodings: tuple[str, ...]
    column_sizes: tuple[int | None, ...]

    @property
    def stored(self) -> ShardFile:
        """The file on disk."""
        return self.zip_data or self.raw_data

    @property
    def columns(self) -> dict[str, str]:
        """Column name to MDS encoding."""
        return dict(zip(self.column_names, self.column_encodings, strict=True))

    def row_dtype(self) -> np.dtype[np.void]:
        """The columns of one row as a structured type. Raises DataError for a column that is no array of numbers."""
        return np.dtype([(name, *_dtype_of(name, encoding)) for name, encoding in self.columns.items()])

    def inside(self, folder: str) -> "Shard":
        """The same shard, with its path relative to the parent of `folder`."""
        moved = {
            field: file.model_copy(update={"basename": f"{folder}/{file.basename}"})
            for field, file in (("raw_data", self.raw_data), ("zip_data", self.zip_data))
            if file is not None
        }
        return self.model_copy(update=moved)


class ShardIndex(BaseModel):
    """The shards of a folder, in the order of their rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[2] = 2
    shards: tuple[Shard, ...]

    @property
    def rows(self) -> int:
        """Rows over all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def stored_bytes(self) -> int:
        """Size of the shard files."""
        return sum(shard.stored.bytes for shard in self.shards)

    def to_json(self) -> str:
        """The content of index.json: the same index gives the same text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)


def read_index(folder: Path) -> ShardIndex:
    """The index of `folder`. Raises CorruptData where it is missing or not an index."""
    return parse_index(folder, read_index_bytes(folder))


def read_index_bytes(folder: Path) -> bytes:
    """The index of `folder` as it is on disk. Raises CorruptData where it is missing."""
    path = folder / INDEX
    if not path.is_file():
        raise CorruptData(path, "is missing")
    return path.read_bytes()


def parse_index(folder: Path, content: bytes) -> ShardIndex:
    """Parses `content` as the index of `folder`. Raises CorruptData where it is not an index."""
    try:
        return ShardIndex.model_validate_json(content)
    except ValidationError as error:
        raise CorruptData(folder / INDEX, f"is not an index of MDS shards: {error}") from error


def write_index(folder: Path, index: ShardIndex) -> None:
    """Write the index of `folder` atomically: a reader sees either the old one or the new one."""
    write_file(folder / INDEX, index.to_json())


def check_files(folder: Path, index: ShardIndex) -> None:
    """Raise CorruptData unless every shard of `index` is in `folder` with the size that the index states."""
    for shard in index.shards:
        check_size(folder / shard.stored.basename, shard)


def check_size(path: Path, shard: Shard) -> None:
    """Raise CorruptData unless `path`, the file of `shard`, exists with the size that the index states."""
    if not path.is_file():
        raise CorruptData(path, f"is missing, though {INDEX} lists it with {shard.samples} rows")
    found = path.stat().st_size
    if found != shard.stored.bytes:
        raise CorruptData(path, f"has {found} bytes, {INDEX} says {shard.stored.bytes}")


def _dtype_of(name: str, encoding: str) -> tuple[str, tuple[int, ...]]:
    if encoding in _NUMBERS:
        return encoding, ()
    kind, _, rest = encoding.partition(":")
    if kind != "ndarray":
        raise DataError(f"column {name} is stored as {encoding}; expected a number or ndarray:DTYPE:LENGTH")
    dtype, _, shape = rest.partition(":")
    if not shape:
        raise DataError(f"column {name} is stored as {encoding}, without a fixed shape; expected ndarray:DTYPE:LENGTH")
    return dtype, tuple(int(side) for side in shape.split(","))


def merge_index(domain_folder: Path, parts: Sequence[Part]) -> int:
    """Join the parts' indices into `domain_folder`/index.json, in the order of their numbers. Returns the total rows.

    Raises DataError for a name that is not a part's, a name given twice, and a part that is missing, not named, or
    different from its record: another index, another number of rows, or shards that are missing or of another size.
    """
    for corruption in foreign_parts(domain_folder, parts):
        raise corruption
    merged = joined(read_part_indices(domain_folder, parts))
    check_files(domain_folder, merged)
    write_index(domain_folder, merged)
    return merged.rows


def read_part_indices(domain_folder: Path, parts: Sequence[Part]) -> dict[str, ShardIndex]:
    """Maps each part's name to its index, in the order of the parts' numbers. Raises the errors of
    `read_part_index`."""
    return {part.name: read_part_index(domain_folder, part) for part in in_order(domain_folder, parts)}


def read_part_index(domain_folder: Path, part: Part) -> ShardIndex:
    """The index of a part. Raises CorruptData where it differs from the part's record."""
    folder = domain_folder / part.name
    if not folder.is_dir():
        raise CorruptData(folder, f"is missing, a part of {part.rows} rows")
    content = read_index_bytes(folder)
    index = parse_index(folder, content)
    found = hashlib.sha256(content).hexdigest()
    if found != part.index_sha256:
        raise CorruptData(
            folder / INDEX,
            f"is not the one that was written with this part: its SHA-256 is {found[:12]}, the manifest says "
            f"{part.index_sha256[:12]}",
        )
    if (index.rows, index.stored_bytes) != (part.rows, part.bytes):
        raise CorruptData(
            folder / INDEX,
            f"lists {index.rows} rows in {index.stored_bytes} bytes, the manifest says {part.rows} rows in "
            f"{part.bytes} bytes",
        )
    return index


def joined(indices: dict[str, ShardIndex]) -> ShardIndex:
    """Joins the indices of parts, by name, into one index for the folder that contains the parts."""
    return ShardIndex(shards=tuple(shard.inside(name) for name, index in indices.items() for shard in index.shards))


def check_merged(domain_folder: Path, expected: ShardIndex) -> None:
    """Raise CorruptData unless `domain_folder`/index.json equals, byte for byte, `merge_index`'s file of `expected`."""
    content = read_index_bytes(domain_folder)
    if content == expected.to_json().encode("utf-8"):
        return
    found = read_index(domain_folder)
    path = domain_folder / INDEX
    if found.rows != expected.rows:
        raise CorruptData(path, f"lists {found.rows} rows, its parts {expected.rows}")
    if found != expected:
        raise CorruptData(path, f"does not list the {len(expected.shards)} shards of its parts in their order")
    raise CorruptData(path, "was changed since it was written, though it still lists the same shards")


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


def foreign_parts(domain_folder: Path, parts: Sequence[Part]) -> Iterator[CorruptData]:
    """Every folder in `domain_folder` that is named like a part but is not one of `parts`."""
    names = {part.name for part in parts}
    there = sorted(path for path in domain_folder.glob("part-*") if _PART_FOLDER.fullmatch(path.name))
    for path in there:
        if path.name not in names and path.is_dir():
            yield CorruptData(path, f"belongs to another dataset: it is none of the {len(parts)} parts of this one")


def _number(part_name: str) -> int:
    return int(part_name.removeprefix("part-"))
