"""A look at text files: which reader they need, where the text lies in a record, and how much of it there is."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from megaslm.config.recipe import Recipe, Source, TokenizerSection
from megaslm.corpus.documents import FileRange, InputFile
from megaslm.corpus.files import find_files
from megaslm.corpus.json_array import array_records
from megaslm.corpus.patterns import USUAL_ENDINGS
from megaslm.corpus.readers import parse_record
from megaslm.corpus.record_text import MESSAGE_KEYS
from megaslm.corpus.records import lines
from megaslm.corpus.source_bytes import ReadLog, open_input
from megaslm.corpus.tasks import TaskReader, plan_tasks
from megaslm.errors import ConfigError, DataError
from megaslm.observe.display import counted, size
from megaslm.scaffold.sizes import heldout_fraction
from megaslm.tokenizer.word_encoder import fastest_encoder

Reader = Literal["jsonl", "json", "parquet", "text"]
_READERS: tuple[Reader, ...] = ("jsonl", "json", "parquet", "text")
_RECORDS = 50
_SAMPLE_BYTES = 4_000_000
_USUAL_TEXT = ("text", "content", "body", "document", "raw_content")
_USUAL_PAIRS = (
    ("question", "answer"),
    ("query", "response"),
    ("instruction", "output"),
    ("problem", "solution"),
    ("prompt", "completion"),
    ("prompt", "response"),
)


@dataclass(frozen=True)
class TextLook:
    """What a look at the text found."""

    paths: tuple[str, ...]
    reader: Reader
    taken_from: Mapping[str, str]
    """The recipe's key for the text in a record, and its value; empty for files that are documents."""
    fields: tuple[str, ...]
    """All fields of the first records; those of an object within a record with a dot."""
    files: int
    input_bytes: int
    """Size of the files."""
    documents: int
    """Estimated from the first `_SAMPLE_BYTES` of text; exact where there is no more."""
    tokens: int
    """Likewise."""
    unread: tuple[str, ...]
    """Files of other kinds in the same folders, in words."""

    @property
    def trained_tokens(self) -> int:
        """The tokens without those of the documents that are held out."""
        return round(self.tokens * (1 - heldout_fraction(self.documents)))


def look_at_text(paths: Sequence[str], tokenizer: Path) -> TextLook:
    """Looks at the files of `paths`, and tokenises a sample with the tokenizer in the folder `tokenizer`.

    Raises:
        ConfigError: no field of the records holds text.
        DataError: there are no files or no records, or they cannot be read.
    """
    reader, files, unread = _reader_of(paths)
    taken_from, fields = _taken_from(reader, files, paths)
    source = Source.model_validate({"domain": "text", "reader": reader, "paths": tuple(paths), **taken_from})
    documents, tokens = _amount(source, tokenizer)
    return TextLook(
        paths=tuple(paths),
        reader=reader,
        taken_from=taken_from,
        fields=fields,
        files=len(files),
        input_bytes=sum(file.bytes for file in files),
        documents=documents,
        tokens=tokens,
        unread=unread,
    )


def require_text(paths: Sequence[str]) -> None:
    """Raises as `look_at_text`, as far as the first records tell. Reads no tokenizer."""
    reader, files, _ = _reader_of(paths)
    _taken_from(reader, files, paths)


def files_in_both(first: TextLook, second: TextLook) -> tuple[str, ...]:
    """The files of the second text that the first one has, too; sorted."""
    own, others = (
        {
            file.path if file.is_remote else os.path.realpath(file.path): file.path
            for file in find_files(Source(domain="text", reader=look.reader, paths=look.paths))
        }
        for look in (first, second)
    )
    return tuple(sorted(others[name] for name in own.keys() & others.keys()))


def _reader_of(paths: Sequence[str]) -> tuple[Reader, list[InputFile], tuple[str, ...]]:
    """The reader whose files make up most of the text, these files, and the files of other readers, in words.

    Raises DataError where no reader has any.
    """
    if not all(path.strip() for path in paths):
        raise DataError("--corpus, --curated: a path is empty; write . for the current folder")
    # Of any ending: where a path leads to nothing, that is the one reason.
    find_files(Source(domain="text", reader="tree", paths=tuple(paths)))
    found: dict[Reader, list[InputFile]] = {}
    reasons: list[str] = []
    for reader in _READERS:
        try:
            found[reader] = find_files(Source(domain="text", reader=reader, paths=tuple(paths)))
        except DataError as error:
            reasons.append(f"  {reader}: {error}")
    # A path that names a file leads to it under every reader, whatever its ending.
    fitting = {
        reader: files
        for reader, files in found.items()
        if all(file.path.lower().endswith(USUAL_ENDINGS[reader]) for file in files)
    }
    if not fitting:
        endings = ", ".join(ending for reader in _READERS for ending in USUAL_ENDINGS[reader])
        raise DataError(
            f"{', '.join(paths)}: no files of one kind that `init` knows ({endings}); name files of one kind, or write "
            "the recipe by hand (data/README.md)" + "".join(f"\n{reason}" for reason in reasons)
        )
    best = max(fitting, key=lambda reader: sum(file.bytes for file in fitting[reader]))
    others = [
        f"{counted(len(files), f'{reader} file')} ({size(sum(file.bytes for file in files))})"
        for reader, files in fitting.items()
        if reader != best
    ]
    return best, fitting[best], tuple(others)


def _taken_from(
    reader: Reader, files: Sequence[InputFile], paths: Sequence[str]
) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """The `taken_from` and the `fields` of a look at files."""
    if reader == "text":
        return {}, ()
    # Files at the front may be empty.
    records = list(islice(chain.from_iterable(_records(reader, file) for file in files), _RECORDS))
    if not records:
        raise DataError(f"{', '.join(paths)}: {counted(len(files), 'file')} without a record; name files with text")
    fields = tuple(dict.fromkeys(name for record in records for name in record))
    return _text_in(records, ", ".join(paths)), fields


def _records(reader: Reader, file: InputFile) -> Iterator[dict[str, Any]]:
    """The records of a file; of a parquet file, the first ones."""
    if reader == "parquet":
        from pyarrow import parquet

        with open_input(file) as opened, parquet.ParquetFile(opened) as table:
            batch = next(table.iter_batches(_RECORDS), None)
            yield from [] if batch is None else batch.to_pylist()
        return
    for record in (lines if reader == "jsonl" else array_records)(FileRange(file, 0, file.bytes), ReadLog()):
        yield parse_record(record.content, record.place)


def _text_in(records: Sequence[Mapping[str, Any]], path: str) -> dict[str, str]:
    """The key of a recipe, and its value, by which the records give text."""
    records = [dict(_with_inner_fields(record)) for record in records]
    names = tuple(dict.fromkeys(name for record in records for name in record))
    for name in names:
        if all(_is_chat(record.get(name)) for record in records):
            return {"messages_field": name}
    texts = [name for name in names if all(isinstance(record.get(name), str) for record in records)]
    for name in _USUAL_TEXT:
        if name in texts:
            return {"text_field": name}
    for first, second in _USUAL_PAIRS:
        if first in texts and second in texts:
            return {"template": f"{{{first}}}\n{{{second}}}"}
    if not texts:
        raise ConfigError(
            f"{path}: none of the fields {', '.join(names) or '(no records)'} holds text in each of the first "
            f"{counted(len(records), 'record')}; write the recipe by hand, with text_field, template or messages_field"
        )
    longest = max(texts, key=lambda name: sum(len(record[name]) for record in records))
    return {"text_field": longest}


def _with_inner_fields(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields of a record, then those of objects within it under the names that recipes give them: `meta.text`."""
    yield from record.items()
    for outer, value in record.items():
        if isinstance(value, dict):
            yield from ((f"{outer}.{name}", inner) for name, inner in _with_inner_fields(value))


def _is_chat(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) and _is_turn(turn) for turn in value)


def _is_turn(message: Mapping[str, object]) -> bool:
    return any(set(keys) <= set(message) for keys in MESSAGE_KEYS)


def _amount(source: Source, tokenizer: Path) -> tuple[int, int]:
    """Documents and tokens of all files of `source`, estimated from a sample."""
    recipe = Recipe(
        name="look", licence="-", seq_len=1, tokenizer=TokenizerSection(huggingface=str(tokenizer)), sources=(source,)
    )
    encoder = fastest_encoder(tokenizer)
    documents = tokens = text_bytes = input_bytes = 0
    tasks = plan_tasks(recipe)
    for task in tasks:
        reader = TaskReader(task)
        for document in reader.documents():
            documents += 1
            text_bytes += len(document.text.encode("utf-8"))
            tokens += len(encoder.encode([document.text])[0]) + 1
            if text_bytes >= _SAMPLE_BYTES:
                break
        input_bytes += reader.input_bytes
        if text_bytes >= _SAMPLE_BYTES:
            break
    total = sum(task.input_bytes for task in tasks)
    scale = max(1.0, total / max(1, input_bytes)) if text_bytes >= _SAMPLE_BYTES else 1.0
    return round(documents * scale), round(tokens * scale)
