"""One task of `prepare`: turns ranges of files into parts. A pure function of its job, on any machine."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from megaslm.config.recipe import Recipe
from megaslm.config.schema import Split
from megaslm.corpus.documents import Document
from megaslm.corpus.tasks import Task, TaskReader, split_of
from megaslm.dataset.manifest import Part, SourceFile
from megaslm.dataset.output import Output
from megaslm.dataset.packing import RowPacker, Tokens, as_stored
from megaslm.dataset.shards import PartWriter, RowFormat, part_name, part_writer
from megaslm.errors import DataError
from megaslm.preparing.inputs import Inputs
from megaslm.preparing.sentencepiece_original import Original
from megaslm.slm.valid_targets import valid_targets
from megaslm.tokenizer.tokenizer import TextEncoder, TokenizerFacts
from megaslm.tokenizer.word_encoder import fastest_encoder

_BATCH_CHARACTERS = 1_000_000

Place = tuple[Split, str]
"""The split and the domain of a part."""


@dataclass(frozen=True)
class PrepareSpec:
    """A task and everything needed to do it on any machine."""

    task: Task
    recipe: Recipe
    facts: TokenizerFacts
    tokenizer: Path
    """The tokenizer's folder."""
    dataset: Path
    """The folder in which its parts are written."""
    output: Output
    """The place that they are sent to."""


class _Outcome(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WrittenPart(_Outcome):
    """One part and its counts."""

    split: Split
    domain: str
    part: Part
    tokens: int
    """Valid targets."""
    documents: int


class TaskOutcome(_Outcome):
    """The result of a task."""

    parts: tuple[WrittenPart, ...]
    """One part for each split and domain that has documents of the task."""
    sources: tuple[SourceFile, ...]
    skipped: tuple[str, ...]
    """Files left out because they are not UTF-8."""
    left_out: dict[str, int]
    """Number of documents left out, by the recipe's key for it."""
    text_bytes: int
    """UTF-8 bytes of the documents kept."""
    inputs: Inputs = Inputs()
    """The state of the files that it read."""

    @property
    def tokens(self) -> int:
        """Valid targets over all parts."""
        return sum(written.tokens for written in self.parts)


class OnProgress(Protocol):
    """Called with the progress of a task."""

    def __call__(self, *, input_bytes: int, text_bytes: int, documents: int, tokens: int) -> None:
        """Bytes read, before unpacking; UTF-8 bytes and number of the documents kept; valid targets written."""


def run_task(job: PrepareSpec, on_progress: OnProgress) -> TaskOutcome:
    """Read, encode, pack, write and send the task's parts.

    Raises DataError, naming the document, for text that cannot be read or encoded.
    """
    encoder = encoder_of(job.tokenizer, job.facts.sha256)
    reader = TaskReader(job.task)
    building: dict[Place, _PartBuilder] = {}
    text_bytes = 0
    with ExitStack() as open_parts:
        for batch in _batches(reader.documents()):
            text_bytes += sum(len(document.text.encode("utf-8")) for document in batch)
            for place, documents in _by_place(batch, job.recipe).items():
                encoded = [ids for ids in _encoded(documents, encoder, job) if ids.size]
                if encoded and place not in building:
                    building[place] = _PartBuilder.open(job, place, open_parts)
                if encoded:
                    building[place].add(encoded)
            _report(on_progress, reader.input_bytes, text_bytes, building)
        for builder in building.values():
            builder.finish()
        _report(on_progress, job.task.input_bytes, text_bytes, building)
    parts = tuple(builder.written() for _, builder in sorted(building.items()))
    for written in parts:
        job.output.keep_part(written.split, written.domain, written.part)
    return TaskOutcome(
        parts=parts,
        sources=tuple(reader.sources),
        skipped=tuple(reader.skipped),
        left_out=dict(sorted(reader.left_out.items())),
        text_bytes=text_bytes,
        inputs=Inputs(
            looks={
                file_range.file.label: file_range.file.look for file_range in job.task.ranges if file_range.file.look
            },
            skipped_sha256=dict(reader.skipped_sha256),
        ),
    )


def _report(on_progress: OnProgress, input_bytes: int, text_bytes: int, building: dict[Place, "_PartBuilder"]) -> None:
    documents, tokens = (sum(getattr(each, name) for each in building.values()) for name in ("documents", "tokens"))
    on_progress(input_bytes=input_bytes, text_bytes=text_bytes, documents=documents, tokens=tokens)


@lru_cache(maxsize=1)
def encoder_of(tokenizer: Path, sha256: str) -> TextEncoder:
    """The encoder of a tokenizer folder. It is cached, with its memory, while the folder holds the same tokenizer."""
    return fastest_encoder(tokenizer)


@lru_cache(maxsize=1)
def _original_of(tokenizer: Path, sha256: str) -> Original | None:
    return Original.of(tokenizer)


@dataclass
class _PartBuilder:
    place: Place
    writer: PartWriter
    packer: RowPacker
    vocab_size: int
    domain_number: int
    eos_id: int
    tokens: int = 0
    documents: int = 0

    @classmethod
    def open(cls, job: PrepareSpec, place: Place, open_parts: ExitStack) -> "_PartBuilder":
        recipe, facts, (split, domain) = job.recipe, job.facts, place
        row_format = RowFormat(
            seq_len=recipe.seq_len,
            vocab_size=facts.vocab_size,
            shard_bytes=recipe.shard_bytes,
            compression=recipe.compression,
        )
        folder = job.dataset / split / domain / part_name(job.task.number)
        return cls(
            place=place,
            writer=open_parts.enter_context(part_writer(folder, row_format)),
            packer=RowPacker(recipe.seq_len, facts.eos_id, bos=recipe.bos, bos_id=facts.bos_id),
            vocab_size=facts.vocab_size,
            domain_number=recipe.domains.index(domain),
            eos_id=facts.eos_id,
        )

    def add(self, documents: Sequence[NDArray[np.unsignedinteger]]) -> None:
        self.documents += len(documents)
        self._write(self.packer.add(documents))

    def finish(self) -> None:
        self._write(self.packer.finish())

    def written(self) -> WrittenPart:
        split, domain = self.place
        return WrittenPart(
            split=split, domain=domain, part=self.writer.part, tokens=self.tokens, documents=self.documents
        )

    def _write(self, rows: Tokens) -> None:
        self.tokens += int(valid_targets(rows, self.eos_id).sum())
        self.writer.write(as_stored(rows, self.vocab_size), self.domain_number)


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Documents in lists of bounded size, at least one document each."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _by_place(documents: list[Document], recipe: Recipe) -> dict[Place, list[Document]]:
    placed: dict[Place, list[Document]] = {}
    for document in documents:
        assert document.domain is not None  # TaskReader gives each one
        placed.setdefault((split_of(document, recipe), document.domain), []).append(document)
    return placed


def _encoded(documents: list[Document], encoder: TextEncoder, job: PrepareSpec) -> list[NDArray[np.uint32]]:
    """The ids of each document. None is EOS, and none is BOS where rows have BOS."""
    try:
        encoded = encoder.encode([document.text for document in documents])
    except DataError:
        for document in documents:
            _require_encodable(document, encoder)
        raise
    for mark in _marks(job):
        # Check the whole batch at once, because most batches have none.
        if (np.concatenate(encoded) == mark.id).any():
            for document, ids in zip(documents, encoded, strict=True):
                _require_none(document, ids, mark, encoder)
    original = _original_of(job.tokenizer, job.facts.sha256)
    if original is not None:
        for document, ids in zip(documents, encoded, strict=True):
            original.require_same(document, ids, encoder)
    return encoded


def _require_encodable(document: Document, encoder: TextEncoder) -> None:
    try:
        encoder.encode([document.text])
    except DataError as error:
        raise DataError(f"{document.origin}: {error}") from error


@dataclass(frozen=True)
class _Mark:
    """A token that marks the bounds of documents or rows, so that no text may give it."""

    id: int
    name: str
    """Its role, EOS or BOS."""
    refusal: str
    """What is wrong with it inside a document, and what to do."""


def _marks(job: PrepareSpec) -> Iterator[_Mark]:
    """EOS and, where rows have BOS, BOS."""
    another = "in the tokenizer's tokenizer_config.json to a token that no text gives"
    without = "leave such documents out with a filter"
    yield _Mark(job.facts.eos_id, "EOS", f"which would cut the document in two; set eos_token {another}, or {without}")
    bos = job.recipe.bos
    if bos != "none" and job.facts.bos_id is not None:
        yield _Mark(
            job.facts.bos_id,
            "BOS",
            f"which `bos: {bos}` allows only before a {bos}; set bos_token {another}, {without}, or set bos: none",
        )


def _require_none(document: Document, ids: NDArray[np.uint32], mark: _Mark, encoder: TextEncoder) -> None:
    places = np.flatnonzero(ids == mark.id)
    if places.size:
        name = encoder.decode(np.array([mark.id], dtype=np.uint32))
        raise DataError(
            f"{document.origin}: token {places[0]} of the text is {mark.id}, {name!r}, the {mark.name} token, "
            f"{mark.refusal}"
        )
