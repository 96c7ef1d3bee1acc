"""The documents of a task that its recipe keeps, and an account of what was read and what was left out."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from megaslm.config.recipe import Source
from megaslm.data.dataset.manifest import SourceFile
from megaslm.data.text.documents import Document, InvalidUtf8, Piece, falls_within
from megaslm.data.text.filters import first_unmet
from megaslm.data.text.readers import read_documents, skips_invalid_utf8
from megaslm.data.text.source_bytes import ReadLog
from megaslm.data.text.tasks import Task
from megaslm.errors import DataError


class TaskReader:
    """Reads the pieces of one task, once."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._log = ReadLog()
        self.sources: list[SourceFile] = []
        """What was read to its end."""
        self.skipped: list[str] = []
        """Files left out because they are not UTF-8."""
        self.skipped_sha256: dict[str, str] = {}
        """Of these files."""
        self.left_out: Counter[str] = Counter()
        """Documents left out, by the recipe's key that did it."""

    @property
    def input_bytes(self) -> int:
        """Read so far, as the files have them."""
        return self._log.input_bytes

    def documents(self) -> Iterator[Document]:
        """The documents that are kept, each with its domain, in order. Raises DataError for what cannot be read."""
        for piece in self._task.pieces:
            try:
                for document in read_documents(piece, self._task.source, self._log):
                    yield from self._kept(document)
            except InvalidUtf8:
                if not skips_invalid_utf8(self._task.source):
                    raise
                self.skipped.append(piece.file.label)
                self.skipped_sha256[piece.file.label] = self._log.sha256
            else:
                self.sources.append(_source_file(piece, self._log.sha256))

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
            f"{document.origin}: {source.domain_field} is {document.domain!r}; {key}.domains names "
            f"{', '.join(source.domains)}: add it there, with null to leave such documents out"
        )
    return source.domains[document.domain]


def _source_file(piece: Piece, sha256: str) -> SourceFile:
    file = piece.file
    return SourceFile(
        path=file.label,
        bytes=file.bytes,
        start=piece.start,
        stop=piece.stop,
        sha256=sha256,
        version=file.version if file.is_remote else None,
    )
