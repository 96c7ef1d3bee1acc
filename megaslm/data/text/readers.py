"""Documents out of pieces of files."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from megaslm.config.recipe import Source
from megaslm.data.text.documents import Document, InvalidUtf8, Piece
from megaslm.data.text.python_stdlib import documentation
from megaslm.data.text.records import COMPRESSED, lines, separated
from megaslm.data.text.source_bytes import ReadLog, open_input, piece_bytes, sha256_of_piece
from megaslm.errors import DataError

if TYPE_CHECKING:
    from pyarrow.parquet import RowGroupMetaData

_PARQUET_BATCH_ROWS = 64
_PARQUET_BUFFER_BYTES = 2**20


def is_divisible(path: str, source: Source) -> bool:
    """Whether a file can be read from the middle, so that it may be divided into pieces."""
    if source.reader == "parquet":
        return True
    return (source.reader == "jsonl" or source.separator is not None) and not path.endswith(COMPRESSED)


def read_documents(piece: Piece, source: Source, log: ReadLog) -> Iterator[Document]:
    """The documents that begin in a piece, in order; read to their end, the log has the piece's SHA-256.

    Memory is bounded by the longest document, of parquet by the longest row group. Raises DataError with file and place
    for what is not readable text, InvalidUtf8 where a whole file is not UTF-8.
    """
    match source.reader:
        case "jsonl":
            return _read_jsonl(piece, source, log)
        case "parquet":
            return _read_parquet(piece, source, log)
        case "text" if source.separator is not None:
            return _read_separated(piece, source.separator, log)
        case "text" | "tree" | "python-source":
            return _read_whole(piece, log)
        case "python-docs":
            return _read_documentation(piece, source, log)


def skips_invalid_utf8(source: Source) -> bool:
    """Whether a file of `source` that is not UTF-8 is left out; the standard library has some on purpose."""
    return source.skip_invalid_utf8 or source.reads_standard_library


def _read_whole(piece: Piece, log: ReadLog) -> Iterator[Document]:
    text = _read_text(piece, log)
    yield Document(text, piece.file.group or text, piece.file.label)


def _read_documentation(piece: Piece, source: Source, log: ReadLog) -> Iterator[Document]:
    texts = documentation(piece.file, _read_text(piece, log), source.min_characters)
    for number, text in enumerate(texts, start=1):
        yield Document(text, piece.file.group or text, f"{piece.file.label}, docstring {number}")


def _read_text(piece: Piece, log: ReadLog) -> str:
    with piece_bytes(piece, 0, log) as data:
        content = data.readall()
        log.sha256 = data.sha256()
    try:
        # Bytes, because text mode would turn \r\n into \n.
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidUtf8(
            f"{piece.file.path} is not UTF-8: byte {error.start} is 0x{content[error.start]:02x}; convert the file, "
            "or set skip_invalid_utf8 of its source"
        ) from error


def _read_separated(piece: Piece, separator: str, log: ReadLog) -> Iterator[Document]:
    for record in separated(piece, separator.encode("utf-8"), log):
        text = _decoded(record.content, record.place)
        yield Document(text, text, record.place)


def _read_jsonl(piece: Piece, source: Source, log: ReadLog) -> Iterator[Document]:
    for record in lines(piece, log):
        yield _document_of(_parse_line(record.content, record.place), record.place, source)


def _parse_line(line: bytes, place: str) -> dict[str, object]:
    try:
        record = json.loads(_decoded(line, place))
    except json.JSONDecodeError as error:
        raise DataError(f"{place} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{place} holds a JSON {type(record).__name__}; expected an object with a text field")
    return record


def _decoded(content: bytes, place: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{place} is not UTF-8: byte {error.start} of it is 0x{content[error.start]:02x}") from error


def _read_parquet(piece: Piece, source: Source, log: ReadLog) -> Iterator[Document]:
    import pyarrow

    try:
        with open_input(piece.file) as file:
            yield from _row_groups(file, piece, source, log)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{piece.file.path} is not a readable parquet file: {error}") from error
    log.sha256 = sha256_of_piece(piece)


def _row_groups(file: BinaryIO, piece: Piece, source: Source, log: ReadLog) -> Iterator[Document]:
    """The documents of the row groups that begin in a piece."""
    from pyarrow import parquet

    # Read page by page: a row group may be larger than what memory there is for it.
    with parquet.ParquetFile(file, pre_buffer=False, buffer_size=_PARQUET_BUFFER_BYTES) as table:
        columns = _parquet_columns(piece, source, table.schema_arrow.names)
        first_row = 0
        for number in range(table.num_row_groups):
            group = table.metadata.row_group(number)
            if piece.start <= _first_byte(group) < piece.stop:
                row = first_row
                for batch in table.iter_batches(_PARQUET_BATCH_ROWS, row_groups=[number], columns=columns):
                    for record in batch.to_pylist():
                        row += 1
                        yield _document_of(record, f"{piece.file.path}, row {row}", source)
                log.input_bytes += sum(
                    group.column(column).total_compressed_size for column in range(group.num_columns)
                )
            first_row += group.num_rows


def _first_byte(group: "RowGroupMetaData") -> int:
    column = group.column(0)
    return min(offset for offset in (column.dictionary_page_offset, column.data_page_offset) if offset is not None)


def _parquet_columns(piece: Piece, source: Source, there: list[str]) -> list[str]:
    fields = [source.text_field, source.group_field, source.domain_field]
    columns = []
    for field in (field for field in fields if field is not None):
        column = field if field in there else field.partition(".")[0]
        if column not in there:
            raise DataError(
                f"{piece.file.path} has no column {field!r}; it has {', '.join(there)}: set text_field, group_field or "
                "domain_field"
            )
        columns.append(column)
    return list(dict.fromkeys(columns))


def _document_of(record: dict[str, object], place: str, source: Source) -> Document:
    text = _field(record, source.text_field, place)
    if not isinstance(text, str):
        raise DataError(f"{place}: field {source.text_field!r} is a {type(text).__name__}; expected a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: character {error.start} of the text is half of a surrogate pair") from error
    group = text if source.group_field is None else str(_field(record, source.group_field, place))
    domain = None if source.domain_field is None else str(_field(record, source.domain_field, place))
    return Document(text, group, place, domain)


def _field(record: dict[str, object], name: str, place: str) -> object:
    """A field, or with dots in its name one of an object in the record."""
    if name in record:
        return record[name]
    outer, _, inner = name.partition(".")
    value = record.get(outer)
    if inner and isinstance(value, dict):
        return _field(value, inner, f"{place}, {outer}")
    raise DataError(
        f"{place} has no field {name!r}; it has {', '.join(record)}: set text_field, group_field or domain_field"
    )
