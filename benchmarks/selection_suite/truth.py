"""The kind of every target of prepared text, by the characters that its token stands for."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.selection_suite.texts import Document, Span
from megaslm.dataset.manifest import TOKENIZER, read_manifest
from megaslm.dataset.packing import RowPacker
from megaslm.dataset.rows import RowReader
from megaslm.errors import DataError
from megaslm.tokenizer.token_places import PlacingEncoder

END = "document end"
"""The kind of the targets that end documents."""


def write_documents(path: Path, documents: Sequence[Document]) -> None:
    """One document a line, with its kind and its spans."""
    lines = (
        json.dumps({"text": document.text, "kind": document.kind, "spans": document.spans}) + "\n"
        for document in documents
    )
    path.write_text("".join(lines), encoding="utf-8")


def read_documents(path: Path) -> list[Document]:
    """What `write_documents` wrote."""
    records = map(json.loads, filter(None, path.read_text(encoding="utf-8").split("\n")))
    return [
        Document(record["text"], record["kind"], tuple(Span(*span) for span in record["spans"])) for record in records
    ]


def kinds_of_targets(dataset: Path, domain: str, texts: Path) -> tuple[NDArray[np.int16], tuple[str, ...]]:
    """The number of each target's kind in the rows of a domain, (rows, L), and the kinds' names.

    A token is of the kind of its last character. The rows are packed again from the documents of `texts`, by the
    dataset's tokenizer. Raises DataError where the result is not the dataset's rows, token by token.
    """
    documents = read_documents(texts)
    kinds = (END, *sorted(set().union(*(document.all_kinds for document in documents))))
    numbers = {kind: number for number, kind in enumerate(kinds)}
    manifest = read_manifest(dataset)
    encoder = PlacingEncoder(dataset / TOKENIZER)
    # A kind is packed as a token is: the end of a document has the number 0.
    tokens, labels = RowPacker(manifest.seq_len, manifest.eos_id), RowPacker(manifest.seq_len, numbers[END])
    rows, row_labels = [], []
    for document in documents:
        ids, labelled = _labelled(encoder, document, numbers)
        rows.append(tokens.add([ids]))
        row_labels.append(labels.add([labelled]))
    packed, found = np.concatenate([*rows, tokens.finish()]), np.concatenate([*row_labels, labels.finish()])
    reader = RowReader(dataset, "train", domain)
    if not np.array_equal(reader.rows(0, len(reader))["tokens"], packed):
        raise DataError(
            f"{dataset}: does not hold the documents of {texts} in their order; remove both, and begin anew"
        )
    return found[:, 1:].astype(np.int16), kinds


def _labelled(
    encoder: PlacingEncoder, document: Document, numbers: Mapping[str, int]
) -> tuple[NDArray[np.uint32], NDArray[np.int16]]:
    """The tokens of a document, and the number of the kind of each."""
    ids, starts, _ = encoder.encode(document.text)
    ends = np.append(starts[1:], len(document.text))
    return ids, document.kinds(numbers)[np.maximum(starts, ends - 1)]
