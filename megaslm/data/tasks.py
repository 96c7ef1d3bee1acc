"""The division of a recipe's work into tasks, from the recipe and its files alone, never from the machine."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from megaslm.config.recipe import Recipe, Source
from megaslm.config.schema import Split
from megaslm.data.documents import Document, InputFile, InvalidUtf8, falls_within
from megaslm.data.files import find_files
from megaslm.data.readers import read_documents, skips_invalid_utf8


@dataclass(frozen=True)
class Task:
    """Files that are read together and become one part in each split."""

    number: int
    """Its place among all tasks."""
    part: int
    """Its place among the tasks of its domain, the number of its parts."""
    source: Source
    """How to read the files."""
    files: tuple[InputFile, ...]
    """What to read, in order."""


def plan_tasks(recipe: Recipe) -> tuple[Task, ...]:
    """The tasks, in the order of the sources and of their files. Raises DataError where a path leads to no file."""
    tasks: list[Task] = []
    parts = dict.fromkeys(recipe.domains, 0)
    for source in recipe.sources:
        for files in _batches(find_files(source), recipe.part_bytes):
            tasks.append(Task(len(tasks), parts[source.domain], source, files))
            parts[source.domain] += 1
    return tuple(tasks)


def _batches(files: list[InputFile], most_bytes: int) -> Iterator[tuple[InputFile, ...]]:
    batch: list[InputFile] = []
    size = 0
    for file in files:
        if batch and size + file.bytes > most_bytes:
            yield tuple(batch)
            batch, size = [], 0
        batch.append(file)
        size += file.bytes
    if batch:
        yield tuple(batch)


def kept_documents(task: Task, skipped: list[str]) -> Iterator[Document]:
    """The documents of a task that its source keeps; files left out as not UTF-8 are added to `skipped`."""
    for file in task.files:
        try:
            for document in read_documents(file, task.source):
                if falls_within(task.source.keep_fraction, "keep", document.text):
                    yield document
        except InvalidUtf8:
            if not skips_invalid_utf8(task.source):
                raise
            skipped.append(file.label)


def split_of(document: Document, recipe: Recipe) -> Split:
    """Where a document goes, by the hash of its group."""
    purpose = f"heldout-{recipe.split_seed}"
    return "heldout" if falls_within(recipe.heldout_fraction, purpose, document.group) else "train"


def recipe_sha256(recipe: Recipe) -> str:
    """Fingerprint of all that a recipe says."""
    return _sha256(recipe.model_dump(mode="json"))


def files_sha256(tasks: tuple[Task, ...]) -> str:
    """Fingerprint of the files' names, sizes and times, by which an interrupted run sees that they have changed."""
    return _sha256([[file.label, file.bytes, file.modified_nanoseconds] for task in tasks for file in task.files])


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8")).hexdigest()
