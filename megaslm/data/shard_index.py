"""The index.json of a folder of MDS shards, checked, and the layout of one shard's rows in memory."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from megaslm.data.durable import write_file
from megaslm.errors import DataError

INDEX = "index.json"
PREPARE_AGAIN = "remove the dataset and prepare (or score) it again"


class ShardFile(BaseModel):
    """A shard as a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    basename: str
    """Its path, relative to the index."""
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

    def row_dtype(self) -> np.dtype[np.void]:
        """The columns of one row as a structured type. Raises DataError for columns without a fixed shape."""
        columns = zip(self.column_names, self.column_encodings, strict=True)
        return np.dtype([(name, *_dtype_of(name, encoding)) for name, encoding in columns])

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


def read_index(folder: Path) -> ShardIndex:
    """The index of `folder`. Raises DataError where it is missing or damaged."""
    path = folder / INDEX
    if not path.is_file():
        raise DataError(f"{path} is missing; {PREPARE_AGAIN}")
    try:
        return ShardIndex.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not an index of MDS shards: {error}; {PREPARE_AGAIN}") from error


def write_index(folder: Path, index: ShardIndex) -> None:
    """Write the index of `folder` so that a reader sees either the former one or this one."""
    write_file(folder / INDEX, json.dumps(index.model_dump(mode="json"), sort_keys=True))


def check_files(folder: Path, index: ShardIndex) -> None:
    """Raise DataError unless every shard of `index` lies in `folder` with the size that the index states."""
    for shard in index.shards:
        path = folder / shard.stored.basename
        if not path.is_file():
            raise DataError(f"{path} is missing, though {INDEX} lists it with {shard.samples} rows; {PREPARE_AGAIN}")
        found = path.stat().st_size
        if found != shard.stored.bytes:
            raise DataError(f"{path} has {found} bytes, {INDEX} says {shard.stored.bytes}; {PREPARE_AGAIN}")


def _dtype_of(name: str, encoding: str) -> tuple[str, tuple[int, ...]]:
    kind, _, rest = encoding.partition(":")
    if kind != "ndarray":
        return encoding, ()
    dtype, _, shape = rest.partition(":")
    if not shape:
        raise DataError(f"column {name} is stored as {encoding}, without a fixed shape; expected ndarray:DTYPE:LENGTH")
    return dtype, tuple(int(side) for side in shape.split(","))
