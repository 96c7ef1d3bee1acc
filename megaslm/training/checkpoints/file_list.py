"""COMPLETE, the list of a checkpoint's files with sizes and hashes. Written last, it marks a checkpoint as complete."""

import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from megaslm.config.run_files import COMPLETE
from megaslm.errors import CheckpointError
from megaslm.files import looked_in, write_file

WEIGHTS = "weights-"
"""Prefix of the names of the files that an export needs."""


class Described(NamedTuple):
    """A file's size in bytes, and the SHA-256 of its content."""

    size: int
    sha256: str


_READS = 3
_SECONDS_BETWEEN_READS = 1.0

FileList = dict[str, Described]


def describe(path: Path) -> Described:
    """Reads the whole file."""
    with path.open("rb") as file:
        return Described(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def write_file_list(checkpoint: Path, files: FileList) -> None:
    """Marks a folder as a complete checkpoint. The first line of the list is the SHA-256 of the rest."""
    content = json.dumps(dict(sorted(files.items())), indent=1) + "\n"
    write_file(checkpoint / COMPLETE, f"sha256 {hashlib.sha256(content.encode()).hexdigest()}\n{content}")


def read_file_list(checkpoint: Path) -> FileList:
    """The files that a checkpoint must have.

    Raises CheckpointError where the checkpoint is not complete, or its list is corrupt.
    """
    path = checkpoint / COMPLETE
    if not path.is_file():
        raise CheckpointError(
            f"{checkpoint}: no such checkpoint{looked_in(checkpoint)}, or an unfinished one; it has no file {COMPLETE}"
        )
    try:
        first, _, content = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise CheckpointError(f"{checkpoint}: {COMPLETE} cannot be read: {error.strerror}") from error
    if first == b"{":
        raise CheckpointError(
            f"{checkpoint}: was written by version 0.1.0, as DeepSpeed's files; export it with that version and start "
            "a new run from the export with model.from_pretrained"
        )
    if first != f"sha256 {hashlib.sha256(content).hexdigest()}".encode():
        raise CheckpointError(f"{checkpoint}: {COMPLETE} has other content than was written")
    return {name: Described(*described) for name, described in json.loads(content).items()}


@dataclass(frozen=True)
class Corruption:
    """A corrupt or missing file."""

    name: str
    found: str


def corruption_of(checkpoint: Path, names: Iterable[str], files: FileList) -> list[Corruption]:
    """Compares files with the list: sizes first, then the content of files of the right size."""
    problems = {name: _problem(checkpoint / name, files[name]) for name in names}
    return [Corruption(name, problem) for name, problem in problems.items() if problem is not None]


def _problem(path: Path, written: Described) -> str | None:
    """What is wrong with a file. A read error counts only when it repeats."""
    for _ in range(_READS - 1):
        try:
            return _difference(path, written)
        except OSError:
            # A network file system may have lost its server for a moment.
            time.sleep(_SECONDS_BETWEEN_READS)
    try:
        return _difference(path, written)
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _difference(path: Path, written: Described) -> str | None:
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != written.size:
        return f"has {path.stat().st_size:,} bytes, not {written.size:,}"
    return None if describe(path).sha256 == written.sha256 else "has other content than was written"
