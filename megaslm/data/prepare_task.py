"""One task of prepare: files to the parts that they become. A pure function of its job, run in any process."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from megaslm.config.recipe import Recipe
from megaslm.config.schema import Split
from megaslm.data.documents import Document, sha256_of_file
from megaslm.data.manifest import Part, SourceFile
from megaslm.data.packing import RowPacker, Tokens, count_targets
from megaslm.data.shards import PartWriter, RowFormat, part_name, part_writer
from megaslm.data.tasks import Task, kept_documents, split_of
from megaslm.data.tokenizer import FolderEncoder, TokenizerFacts

_BATCH_CHARACTERS = 2_000_000


@dataclass(frozen=True)
class Job:
    """A task and all that it needs to be done anywhere."""

    task: Task
    recipe: Recipe
    facts: TokenizerFacts
    tokenizer: Path
    """The tokenizer's folder."""
    dataset: Path
    """The dataset's folder."""


class _Outcome(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WrittenPart(_Outcome):
    """One part and what it counts for."""

    part: Part
    tokens: int
    """Valid targets."""
    documents: int


class TaskOutcome(_Outcome):
    """What a task did."""

    domain: str
    parts: dict[Split, WrittenPart]
    """A split that no document of the task belongs to is left out."""
    sources: tuple[SourceFile, ...]
    skipped: tuple[str, ...]
    """Files left out because they are not UTF-8."""
    text_bytes: int
    """UTF-8 bytes of the documents kept."""

    @property
    def tokens(self) -> int:
        """Valid targets over all parts."""
        return sum(written.tokens for written in self.parts.values())


def run_task(job: Job) -> TaskOutcome:
    """Read, encode, pack and write. Raises DataError for text that cannot be read."""
    encoder = FolderEncoder(job.tokenizer)
    skipped: list[str] = []
    text_bytes = 0
    with ExitStack() as open_parts:
        building: dict[Split, _PartBuilder] = {}
        for batch in _batches(kept_documents(job.task, skipped)):
            text_bytes += sum(len(document.text.encode("utf-8")) for document in batch)
            for split, texts in _by_split(batch, job.recipe).items():
                documents = [ids for ids in encoder.encode(texts) if ids.size]
                if documents and split not in building:
                    building[split] = _PartBuilder.open(job, split, open_parts)
                if documents:
                    building[split].add(documents)
        for builder in building.values():
            builder.finish()
    return TaskOutcome(
        domain=job.task.source.domain,
        parts={split: builder.written() for split, builder in building.items()},
        sources=tuple(
            SourceFile(path=file.label, bytes=file.path.stat().st_size, sha256=sha256_of_file(file.path))
            for file in job.task.files
            if file.label not in skipped
        ),
        skipped=tuple(skipped),
        text_bytes=text_bytes,
    )


@dataclass
class _PartBuilder:
    """Documents of one split on their way into one part."""

    writer: PartWriter
    packer: RowPacker
    dtype: np.dtype[np.unsignedinteger]
    domain: int
    eos_id: int
    tokens: int = 0
    documents: int = 0

    @classmethod
    def open(cls, job: Job, split: Split, open_parts: ExitStack) -> "_PartBuilder":
        recipe, facts, domain = job.recipe, job.facts, job.task.source.domain
        row_format = RowFormat(
            seq_len=recipe.seq_len,
            vocab_size=facts.vocab_size,
            shard_bytes=recipe.shard_bytes,
            compression=recipe.compression,
        )
        folder = job.dataset / split / domain / part_name(job.task.part)
        return cls(
            writer=open_parts.enter_context(part_writer(folder, row_format)),
            packer=RowPacker(recipe.seq_len, facts.eos_id),
            dtype=row_format.tokens_dtype,
            domain=recipe.domains.index(domain),
            eos_id=facts.eos_id,
        )

    def add(self, documents: Sequence[NDArray[np.unsignedinteger]]) -> None:
        self.documents += len(documents)
        self._write(self.packer.add(documents))

    def finish(self) -> None:
        self._write(self.packer.finish())

    def written(self) -> WrittenPart:
        return WrittenPart(part=self.writer.part, tokens=self.tokens, documents=self.documents)

    def _write(self, rows: Tokens) -> None:
        self.tokens += count_targets(rows, self.eos_id)
        self.writer.write(rows.astype(self.dtype), self.domain)


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Documents in lists of bounded size, one document at least."""
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


def _by_split(documents: list[Document], recipe: Recipe) -> dict[Split, list[str]]:
    texts: dict[Split, list[str]] = {}
    for document in documents:
        texts.setdefault(split_of(document, recipe), []).append(document.text)
    return texts
