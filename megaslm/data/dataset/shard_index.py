"""The index.json of a folder of MDS shards, checked, and the type of a shard's rows."""

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from megaslm.data.dataset.damage import Damaged
from megaslm.errors import DataError
from megaslm.jobs.durable import write_file

INDEX = "index.json"
CHECKSUM = "xxh3_64"
"""The algorithm of the checksum that every shard has in its index."""
_NUMBERS = (
    *("int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
"""Encodings of one number a row, named as numpy names them."""


def _within_folder(name: str) -> str:
    """An index from elsewhere must not lead readers, and what fetches for them, to other files of this machine."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("leads out of the folder of its index")
    return name


class ShardFile(BaseModel):
    """A shard as a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    basename: Annotated[str, AfterValidator(_within_folder)]
    """Its path, relative to the index and below it."""
    bytes: int
    """Its size."""
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
        """The same shard, seen from the folder above `folder`."""
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
    """The index of `folder`. Raises Damaged where it is missing or not an index."""
    return parse_index(folder, read_index_bytes(folder))


def read_index_bytes(folder: Path) -> bytes:
    """The index of `folder` as it is on disk. Raises Damaged where it is missing."""
    path = folder / INDEX
    if not path.is_file():
        raise Damaged(path, "is missing")
    return path.read_bytes()


def parse_index(folder: Path, content: bytes) -> ShardIndex:
    """The index that `content` spells; `folder` is where it came from. Raises Damaged where it is not an index."""
    try:
        return ShardIndex.model_validate_json(content)
    except ValidationError as error:
        raise Damaged(folder / INDEX, f"is not an index of MDS shards: {error}") from error


def write_index(folder: Path, index: ShardIndex) -> None:
    """Write the index of `folder` so that a reader sees either the former one or this one."""
    write_file(folder / INDEX, index.to_json())


def check_files(folder: Path, index: ShardIndex) -> None:
    """Raise Damaged unless every shard of `index` lies in `folder` with the size that the index states."""
    for shard in index.shards:
        check_size(folder / shard.stored.basename, shard)


def check_size(path: Path, shard: Shard) -> None:
    """Raise Damaged unless `path`, where `shard` is stored, is there with the size that the index states."""
    if not path.is_file():
        raise Damaged(path, f"is missing, though {INDEX} lists it with {shard.samples} rows")
    found = path.stat().st_size
    if found != shard.stored.bytes:
        raise Damaged(path, f"has {found} bytes, {INDEX} says {shard.stored.bytes}")


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
