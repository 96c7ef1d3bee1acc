"""Documents out of files."""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megaslm.config.recipe import Source
from megaslm.data.documents import Document, InputFile, InvalidUtf8
from megaslm.data.python_stdlib import documentation
from megaslm.errors import DataError

_PARQUET_BATCH_ROWS = 256


def read_documents(file: InputFile, source: Source) -> Iterator[Document]:
    """The documents of a file, in order, in bounded memory where the format allows it.

    Raises DataError with file and line for what is not readable text, InvalidUtf8 where a whole file is not UTF-8.
    """
    match source.reader:
        case "jsonl":
            return _read_jsonl(file, source)
        case "parquet":
            return _read_parquet(file, source)
        case "text" | "tree" | "python-source":
            return _read_whole(file)
        case "python-docs":
            return _read_documentation(file, source)


def skips_invalid_utf8(source: Source) -> bool:
    """Whether a file of `source` that is not UTF-8 is left out; the standard library has some on purpose."""
    return source.skip_invalid_utf8 or source.reads_standard_library


def _read_whole(file: InputFile) -> Iterator[Document]:
    text = _read_text(file)
    yield Document(text, file.group or text, file.label)


def _read_documentation(file: InputFile, source: Source) -> Iterator[Document]:
    texts = documentation(file, _read_text(file), source.min_characters)
    for number, text in enumerate(texts, start=1):
        yield Document(text, file.group or text, f"{file.label}, docstring {number}")


def _read_text(file: InputFile) -> str:
    try:
        # Bytes, because text mode would turn \r\n into \n.
        return file.path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidUtf8(
            f"{file.path} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}; convert the file, "
            "or set skip_invalid_utf8 of its source"
        ) from error


def _read_jsonl(file: InputFile, source: Source) -> Iterator[Document]:
    with _readable_errors(file), _open(file.path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.isspace():
                place = f"{file.path}, line {number}"
                yield _document_of(_parse_line(line, place), place, source)


def _parse_line(line: bytes, place: str) -> dict[str, object]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{place} is not UTF-8: byte {error.start} of it is 0x{line[error.start]:02x}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{place} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{place} holds a JSON {type(record).__name__}; expected an object with a text field")
    return record


def _read_parquet(file: InputFile, source: Source) -> Iterator[Document]:
    import pyarrow
    from pyarrow import parquet

    fields = [field for field in (source.text_field, source.group_field) if field is not None]
    try:
        with parquet.ParquetFile(file.path) as table:
            missing = [field for field in fields if field not in table.schema_arrow.names]
            if missing:
                there = ", ".join(table.schema_arrow.names)
                raise DataError(
                    f"{file.path} has no column {missing[0]!r}; it has {there}: set text_field or group_field"
                )
            row = 0
            for batch in table.iter_batches(batch_size=_PARQUET_BATCH_ROWS, columns=list(dict.fromkeys(fields))):
                for record in batch.to_pylist():
                    row += 1
                    yield _document_of(record, f"{file.path}, row {row}", source)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file.path} is not a readable parquet file: {error}") from error


def _document_of(record: dict[str, object], place: str, source: Source) -> Document:
    text = _field(record, source.text_field, place)
    if not isinstance(text, str):
        raise DataError(f"{place}: field {source.text_field!r} is a {type(text).__name__}; expected a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: character {error.start} of the text is half of a surrogate pair") from error
    group = text if source.group_field is None else str(_field(record, source.group_field, place))
    return Document(text, group, place)


def _field(record: dict[str, object], name: str, place: str) -> object:
    if name not in record:
        raise DataError(f"{place} has no field {name!r}; it has {', '.join(record)}: set text_field or group_field")
    return record[name]


def _open(path: Path) -> io.BufferedIOBase:
    if path.name.endswith(".gz"):
        return gzip.GzipFile(path, "rb")
    if path.name.endswith(".zst"):
        import pyarrow

        # Not the package zstandard, whose reader takes a truncated file for a finished one.
        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"), buffer_size=2**20)
    return path.open("rb")


@contextmanager
def _readable_errors(file: InputFile) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file.path} is damaged or not compressed as its name says: {error}") from error
