"""Reads documents from ranges of files."""

import json
from collections.abc import Iterator, Sequence
from decimal import Decimal

from megaslm.config.recipe import Source
from megaslm.corpus.compression import is_compressed, what_it_is
from megaslm.corpus.documents import Document, FileRange, InputFile, InvalidUtf8, document_of
from megaslm.corpus.json_array import array_records
from megaslm.corpus.parquet_rows import read_parquet
from megaslm.corpus.python_stdlib import documentation
from megaslm.corpus.record_text import NoSuchField
from megaslm.corpus.records import Record, lines, opened, separated
from megaslm.corpus.source_bytes import ReadLog
from megaslm.errors import DataError


def is_divisible(path: str, source: Source) -> bool:
    """Whether a file can be read from the middle, so that it may be divided into ranges."""
    if source.reader == "parquet":
        return True
    return (source.reader == "jsonl" or source.separator is not None) and not is_compressed(path)


def read_documents(file_range: FileRange, source: Source, log: ReadLog) -> Iterator[Document]:
    """The documents that begin in a range, in order. At their end, `log` has the range's SHA-256.

    Memory is bounded by the longest document, for parquet by the longest row group. Raises DataError with file and
    place for unreadable text, InvalidUtf8 where a whole file is not UTF-8, NoSuchField where a record lacks a field.
    """
    match source.reader:
        case "jsonl":
            return _read_records(lines(file_range, log), file_range, source)
        case "json":
            return _read_records(array_records(file_range, log), file_range, source)
        case "parquet":
            return read_parquet(file_range, source, log)
        case "text" if source.separator is not None:
            return _read_separated(file_range, source.separator, log)
        case "text" | "tree" | "python-source":
            return _read_whole(file_range, source, log)
        case "python-docs":
            return _read_documentation(file_range, source, log)


def require_fields(files: Sequence[InputFile], source: Source) -> None:
    """Raises NoSuchField where the first record of `files` lacks a field that `source` names."""
    for file in files if source.has_records else ():
        # Files at the front may be empty.
        if next(read_documents(FileRange(file, 0, file.bytes), source, ReadLog()), None) is not None:
            return


def skips_invalid_utf8(source: Source) -> bool:
    """Whether files of `source` that are not UTF-8 are left out. The standard library has some on purpose."""
    return source.skip_invalid_utf8 or source.reads_standard_library


def _read_whole(file_range: FileRange, source: Source, log: ReadLog) -> Iterator[Document]:
    text = _read_text(file_range, source, log)
    yield Document(text, file_range.file.group or text, file_range.file.label)


def _read_documentation(file_range: FileRange, source: Source, log: ReadLog) -> Iterator[Document]:
    texts = documentation(file_range.file, _read_text(file_range, source, log), source.min_characters)
    for number, text in enumerate(texts, start=1):
        yield Document(text, file_range.file.group or text, f"{file_range.file.label}, docstring {number}")


def _read_text(file_range: FileRange, source: Source, log: ReadLog) -> str:
    # A compressed file in a source tree is data of the tree, not its text.
    with opened(file_range, 0, log, unpack=source.reader == "text") as (data, plain):
        content = plain.read()
        log.sha256 = data.sha256()
    try:
        # Decode bytes, because text mode would turn \r\n into \n.
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidUtf8(
            f"{file_range.file.path} is not UTF-8: byte {error.start} is 0x{content[error.start]:02x}"
            f"{_by_its_beginning(content)}; convert the file, or set skip_invalid_utf8 of its source"
        ) from error


def _read_separated(file_range: FileRange, separator: str, log: ReadLog) -> Iterator[Document]:
    for record in separated(file_range, separator.encode("utf-8"), log):
        text = _decoded(record.content, record.place)
        yield Document(text, text, record.place)


def _read_records(records: Iterator[Record], file_range: FileRange, source: Source) -> Iterator[Document]:
    is_first = file_range.start == 0
    for record in records:
        try:
            document = document_of(parse_record(record.content, record.place), record.place, source)
        except NoSuchField as error:
            if is_first:
                raise
            raise error.of_one_record() from error
        yield document
        is_first = False


def parse_record(content: bytes, place: str) -> dict[str, object]:
    """The object of a line or of an entry of an array. Raises DataError, with the place, where it is none."""
    text = _decoded(content, place)
    try:
        record = _parsed(text)
    except RecursionError as error:
        raise DataError(f"{place} is nested too deeply to be read: flatten it or leave it out") from error
    except Exception as error:
        raise DataError(f"{place} is not JSON: {error}{_if_an_array(text)}") from error
    if not isinstance(record, dict):
        raise DataError(
            f"{place} holds a JSON {type(record).__name__}; expected an object with a text field{_if_an_array(text)}"
        )
    return record


def _if_an_array(text: str) -> str:
    is_one = text.lstrip().startswith("[")
    return "; if the file is one array of records, set reader: json" if is_one else ""


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        # Python's int refuses text of so many digits. The recipe may not even use this field.
        return json.loads(text, parse_int=Decimal)


def _decoded(content: bytes, place: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start} of it is 0x{content[error.start]:02x}{_by_its_beginning(content)}"
        raise DataError(f"{place} is not UTF-8: {wrong}") from error


def _by_its_beginning(content: bytes) -> str:
    found = what_it_is(content)
    return f"; by its first bytes it is {found}, and its name or its reader says otherwise" if found else ""
