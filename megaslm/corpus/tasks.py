"""The division of a recipe's work into tasks, and the documents of each task that the recipe keeps.

Tasks depend only on the recipe and its files, not on the machine.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from megaslm.config.recipe import Filter, Recipe, Source
from megaslm.config.section import Section, Split
from megaslm.corpus.documents import Document, FileRange, InputFile, InvalidUtf8, falls_within
from megaslm.corpus.files import find_files
from megaslm.corpus.readers import is_divisible, read_documents, skips_invalid_utf8
from megaslm.corpus.record_text import NoSuchField
from megaslm.corpus.source_bytes import ReadLog
from megaslm.dataset.manifest import SourceFile
from megaslm.errors import DataError

# Earlier builds did not have these keys. At their defaults they leave the fingerprint as it was.
_LATER_KEYS = ("bos",)
_LATER_KEYS_OF_SOURCES = ("hub", "template", "messages_field", "chat_format")


@dataclass(frozen=True)
class Task:
    """Pieces of files that are read together and become one part in each split and domain."""

    number: int
    """Its index among all tasks, and the number of its parts."""
    source_number: int
    """The index of its source in the recipe."""
    source: Source
    """How to read the ranges."""
    ranges: tuple[FileRange, ...]
    """The ranges to read, in order."""

    @property
    def name(self) -> str:
        """Its name in the ledger."""
        return f"{self.number:05d}"

    @property
    def input_bytes(self) -> int:
        """Size of the ranges, before unpacking."""
        return sum(file_range.stop - file_range.start for file_range in self.ranges)


def plan_tasks(recipe: Recipe, passed_over: Counter[str] | None = None) -> tuple[Task, ...]:
    """The tasks, in the order of the sources and of their files.

    Files and folders that are not read are counted in `passed_over`, by source and reason. Raises DataError where a
    path leads to no file.
    """
    tasks: list[Task] = []
    for source_number, source in enumerate(recipe.sources):
        not_read: Counter[str] = Counter()
        files = find_files(source, not_read)
        if passed_over is not None:
            passed_over.update({f"sources.{source_number}: {why}": count for why, count in not_read.items()})
        ranges = [file_range for file in files for file_range in _ranges(file, source, recipe.part_bytes)]
        for together in _batches(ranges, recipe.part_bytes):
            tasks.append(Task(len(tasks), source_number, source, together))
    return tuple(tasks)


def _ranges(file: InputFile, source: Source, most_bytes: int) -> Iterator[FileRange]:
    """A file as one range. A file that is too large and divisible becomes as few equal ranges as possible."""
    count = -(-file.bytes // most_bytes) if is_divisible(file.path, source) else 1
    bounds = [number * file.bytes // max(1, count) for number in range(max(1, count) + 1)]
    for start, stop in pairwise(bounds):
        yield FileRange(file, start, stop)


def _batches(ranges: list[FileRange], most_bytes: int) -> Iterator[tuple[FileRange, ...]]:
    batch: list[FileRange] = []
    size = 0
    for file_range in ranges:
        range_bytes = file_range.stop - file_range.start
        if batch and size + range_bytes > most_bytes:
            yield tuple(batch)
            batch, size = [], 0
        batch.append(file_range)
        size += range_bytes
    if batch:
        yield tuple(batch)


def split_of(document: Document, recipe: Recipe) -> Split:
    """The split of a document, by the hash of its group."""
    purpose = f"heldout-{recipe.split_seed}"
    return "heldout" if falls_within(recipe.heldout_fraction, purpose, document.group) else "train"


def recipe_sha256(recipe: Recipe) -> str:
    """Fingerprint of the whole recipe, the same as in builds that lack a key which is at its default."""
    settings = recipe.model_dump(mode="json")
    _drop_defaults(settings, Recipe, _LATER_KEYS)
    for source in settings["sources"]:
        _drop_defaults(source, Source, _LATER_KEYS_OF_SOURCES)
    return _sha256(settings)


def _drop_defaults(settings: dict[str, object], section: type[Section], keys: Sequence[str]) -> None:
    for key in keys:
        if settings[key] == section.model_fields[key].default:
            del settings[key]


def files_sha256(tasks: Sequence[Task]) -> str:
    """Fingerprint of the files' names, sizes and versions. A resumed job sees by it that files have changed."""
    files = [file_range.file for task in tasks for file_range in task.ranges]
    return _sha256([[file.label, file.bytes, file.version] for file in files])


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8")).hexdigest()


def length(text: str, settings: Filter) -> bool:
    """Whether a text's number of characters is in the range of `settings`."""
    return settings.min_characters <= len(text) and (
        settings.max_characters is None or len(text) <= settings.max_characters
    )


def regex(text: str, settings: Filter) -> bool:
    """Whether a text contains the required pattern, or does not contain the forbidden one."""
    if settings.keep is not None:
        return re.search(settings.keep, text) is not None
    return re.search(settings.drop or "", text) is None


FILTERS: Mapping[str, Callable[[str, Filter], bool]] = {"length": length, "regex": regex}
"""The filters by their names in recipes."""


def first_unmet(text: str, filters: Sequence[Filter]) -> int | None:
    """The index of the first filter that a text fails, None if it passes all."""
    unmet = (place for place, settings in enumerate(filters) if not FILTERS[settings.name](text, settings))
    return next(unmet, None)


class TaskReader:
    """Reads the ranges of one task, once."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._log = ReadLog()
        self.sources: list[SourceFile] = []
        """The ranges that were read to their end."""
        self.skipped: list[str] = []
        """Files left out because they are not UTF-8."""
        self.skipped_sha256: dict[str, str] = {}
        """Hashes of these files."""
        self.left_out: Counter[str] = Counter()
        """Number of documents left out, by the recipe's key for it."""

    @property
    def input_bytes(self) -> int:
        """Bytes read so far, before unpacking."""
        return self._log.input_bytes

    def documents(self) -> Iterator[Document]:
        """The documents that are kept, each with its domain, in order. Raises DataError for unreadable data."""
        for file_range in self._task.ranges:
            try:
                for document in read_documents(file_range, self._task.source, self._log):
                    yield from self._kept(document)
            except InvalidUtf8:
                if not skips_invalid_utf8(self._task.source):
                    raise
                self.skipped.append(file_range.file.label)
                self.skipped_sha256[file_range.file.label] = self._log.sha256
            except NoSuchField as error:
                raise error.of_source(self._task.source_number) from error
            else:
                self.sources.append(_source_file(file_range, self._log.sha256))

    def _kept(self, document: Document) -> Iterator[Document]:
        source, key = self._task.source, f"sources.{self._task.source_number}"
        domain = _domain_of(document, source, key)
        if domain is None:
            self.left_out[f"{key}.domains.{document.domain}"] += 1
        elif not falls_within(source.keep_fraction, "keep", document.text):
            self.left_out[f"{key}.keep_fraction"] += 1
        elif (unmet := first_unmet(document.text, source.filters)) is not None:
            self.left_out[f"{key}.filters.{unmet}"] += 1
        else:
            yield replace(document, domain=domain)


def _domain_of(document: Document, source: Source, key: str) -> str | None:
    if source.domain_field is None:
        return source.domain
    if document.domain not in source.domains:
        raise DataError(
            f"{document.location}: {source.domain_field} is {document.domain!r}; {key}.domains names "
            f"{', '.join(source.domains)}: add it there, with null to leave such documents out"
        )
    return source.domains[document.domain]


def _source_file(file_range: FileRange, sha256: str) -> SourceFile:
    file = file_range.file
    return SourceFile(
        path=file.label,
        bytes=file.bytes,
        start=file_range.start,
        stop=file_range.stop,
        sha256=sha256,
        version=file.version if file.is_remote else None,
    )
