"""One task of `prepare`: turns ranges of files into parts. A pure function of its job, on any machine."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from megaslm.config.recipe import Recipe
from megaslm.config.section import Split
from megaslm.corpus.documents import Document
from megaslm.corpus.tasks import Task, TaskReader, split_of
from megaslm.dataset.manifest import Part, SourceFile
from megaslm.dataset.output import Output
from megaslm.dataset.packing import RowPacker, Tokens, as_stored
from megaslm.dataset.shards import PartWriter, RowFormat, part_name, part_writer
from megaslm.preparing.encoding import DocumentEncoding, EncodedDocument
from megaslm.preparing.inputs import Inputs
from megaslm.slm.valid_targets import valid_targets
from megaslm.tokenizer.tokenizer import TokenizerFacts

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
    encoding = DocumentEncoding.of(job.recipe, job.facts, job.tokenizer, job.task.source)
    reader = TaskReader(job.task)
    building: dict[Place, _PartBuilder] = {}
    text_bytes = 0
    with ExitStack() as open_parts:
        for batch in _batches(reader.documents()):
            text_bytes += sum(len(document.text.encode("utf-8")) for document in batch)
            for place, documents in _by_place(batch, job.recipe).items():
                encoded = [document for document in encoding.encode(documents) if document.ids.size]
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


@dataclass
class _PartBuilder:
    place: Place
    writer: PartWriter
    packer: RowPacker
    mask_packer: RowPacker | None
    """Packs 0 and 1 as `packer` packs ids, if rows carry `target_mask`."""
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
            target_mask=recipe.has_target_mask,
        )
        folder = job.dataset / split / domain / part_name(job.task.number)
        return cls(
            place=place,
            writer=open_parts.enter_context(part_writer(folder, row_format)),
            packer=RowPacker(recipe.seq_len, facts.eos_id, bos=recipe.bos, bos_id=facts.bos_id),
            mask_packer=RowPacker(recipe.seq_len, 1, bos=recipe.bos, bos_id=0) if recipe.has_target_mask else None,
            vocab_size=facts.vocab_size,
            domain_number=recipe.domains.index(domain),
            eos_id=facts.eos_id,
        )

    def add(self, documents: Sequence[EncodedDocument]) -> None:
        self.documents += len(documents)
        masks = None if self.mask_packer is None else self.mask_packer.add([each.trained for each in documents])
        self._write(self.packer.add([each.ids for each in documents]), masks)

    def finish(self) -> None:
        self._write(self.packer.finish(), None if self.mask_packer is None else self.mask_packer.finish())

    def written(self) -> WrittenPart:
        split, domain = self.place
        return WrittenPart(
            split=split, domain=domain, part=self.writer.part, tokens=self.tokens, documents=self.documents
        )

    def _write(self, rows: Tokens, masks: Tokens | None) -> None:
        """Writes rows (n, L+1), and of their `masks` (n, L+1) the (n, L) that belong to targets."""
        target_mask = None if masks is None else masks[:, 1:]
        valid = valid_targets(rows, self.eos_id, target_mask)
        self.tokens += int(valid.sum())
        self.writer.write(
            as_stored(rows, self.vocab_size),
            self.domain_number,
            target_mask=None if target_mask is None else valid.astype(np.uint8),
        )


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
