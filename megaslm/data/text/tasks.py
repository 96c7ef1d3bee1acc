"""The division of a recipe's work into tasks, from the recipe and its files alone, never from the machine."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from megaslm.config.recipe import Recipe, Source
from megaslm.config.schema import Split
from megaslm.data.text.documents import Document, InputFile, Piece, falls_within
from megaslm.data.text.files import find_files
from megaslm.data.text.readers import is_divisible


@dataclass(frozen=True)
class Task:
    """Pieces of files that are read together and become one part in each split and domain."""

    number: int
    """Its place among all tasks, and the number of its parts."""
    source_number: int
    """The place of its source in the recipe."""
    source: Source
    """How to read the pieces."""
    pieces: tuple[Piece, ...]
    """What to read, in order."""

    @property
    def name(self) -> str:
        """What notes of it are filed under."""
        return f"{self.number:05d}"

    @property
    def input_bytes(self) -> int:
        """Of the pieces, as the files have them."""
        return sum(piece.stop - piece.start for piece in self.pieces)


def plan_tasks(recipe: Recipe, passed_over: Counter[str] | None = None) -> tuple[Task, ...]:
    """The tasks, in the order of the sources and of their files.

    What lies in the recipe's folders and is not read is added to `passed_over`, by source and reason. Raises DataError
    where a path leads to no file.
    """
    tasks: list[Task] = []
    for source_number, source in enumerate(recipe.sources):
        not_read: Counter[str] = Counter()
        files = find_files(source, not_read)
        if passed_over is not None:
            passed_over.update({f"sources.{source_number}: {why}": count for why, count in not_read.items()})
        pieces = [piece for file in files for piece in _pieces(file, source, recipe.part_bytes)]
        for together in _batches(pieces, recipe.part_bytes):
            tasks.append(Task(len(tasks), source_number, source, together))
    return tuple(tasks)


def _pieces(file: InputFile, source: Source, most_bytes: int) -> Iterator[Piece]:
    """A file in one piece or, where it is too large and can be divided, in as few equal ones as will do."""
    count = -(-file.bytes // most_bytes) if is_divisible(file.path, source) else 1
    bounds = [number * file.bytes // max(1, count) for number in range(max(1, count) + 1)]
    for start, stop in pairwise(bounds):
        yield Piece(file, start, stop)


def _batches(pieces: list[Piece], most_bytes: int) -> Iterator[tuple[Piece, ...]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        piece_bytes = piece.stop - piece.start
        if batch and size + piece_bytes > most_bytes:
            yield tuple(batch)
            batch, size = [], 0
        batch.append(piece)
        size += piece_bytes
    if batch:
        yield tuple(batch)


def split_of(document: Document, recipe: Recipe) -> Split:
    """Where a document goes, by the hash of its group."""
    purpose = f"heldout-{recipe.split_seed}"
    return "heldout" if falls_within(recipe.heldout_fraction, purpose, document.group) else "train"


def recipe_sha256(recipe: Recipe) -> str:
    """Fingerprint of all that a recipe says."""
    return _sha256(recipe.model_dump(mode="json"))


def files_sha256(tasks: Sequence[Task]) -> str:
    """Fingerprint of the files' names, sizes and versions, by which a run that goes on sees that they have changed."""
    files = [piece.file for task in tasks for piece in task.pieces]
    return _sha256([[file.label, file.bytes, file.version] for file in files])


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8")).hexdigest()
