"""The documents of one file, read as a source of a recipe says."""

import hashlib
from pathlib import Path

from megaslm.config.recipe import Source
from megaslm.corpus.documents import Document, FileRange
from megaslm.corpus.files import describe
from megaslm.corpus.readers import read_documents
from megaslm.corpus.source_bytes import ReadLog


def source_of(path: Path, **settings: object) -> Source:
    """A source of one file; jsonl unless the settings say otherwise."""
    return Source.model_validate(
        {"domain": "d", "reader": "jsonl", "paths": [str(path)], "licence": "none", **settings}
    )


def read(path: Path, **settings: object) -> list[Document]:
    """All documents of a file, whose hash is proved."""
    log, size = ReadLog(), path.stat().st_size
    documents = read_documents(FileRange(describe(path, label=path.name), 0, size), source_of(path, **settings), log)
    found = list(documents)
    assert log.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    return found
