"""Reads documents from parquet files: only the columns that the recipe names."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from megaslm.config.recipe import Source
from megaslm.corpus.documents import Document, FileRange, document_of
from megaslm.corpus.record_text import Field, NoSuchField, fields_of, lacking
from megaslm.corpus.source_bytes import ReadLog, open_input, sha256_of_range
from megaslm.errors import DataError, MegaSLMError

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from pyarrow.parquet import ParquetFile, RowGroupMetaData

_BATCH_ROWS = 64
_BUFFER_BYTES = 2**20
_OF_A_VALUE = "copy the file again, write the value as a string, or name another field for groups or domains"


def read_parquet(file_range: FileRange, source: Source, log: ReadLog) -> Iterator[Document]:
    """The documents of the row groups that begin in a range. At their end, `log` has the range's SHA-256.

    Raises DataError, with file and row, for missing columns, values that are not text, and unreadable data.
    """
    with open_input(file_range.file) as file:
        yield from _row_groups(file, file_range, source, log)
    log.sha256 = sha256_of_range(file_range)


def _row_groups(file: BinaryIO, file_range: FileRange, source: Source, log: ReadLog) -> Iterator[Document]:
    from pyarrow import parquet

    path = file_range.file.path
    with _explaining(f"{path} is not a readable parquet file"):
        # Read page by page: a row group may be larger than the memory.
        table = parquet.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True)
    with table:
        columns = _columns(table, file_range, source)
        first_row = 0
        for number in range(table.num_row_groups):
            group = table.metadata.row_group(number)
            if file_range.start <= _first_byte(group) < file_range.stop:
                row = first_row
                for batch in _batches(table, number, columns, path, first_row):
                    for record in _records(batch, path, row):
                        row += 1
                        yield document_of(record, f"{path}, row {row}", source)
                log.input_bytes += sum(
                    group.column(column).total_compressed_size for column in range(group.num_columns)
                )
            first_row += group.num_rows


def _batches(table: "ParquetFile", group: int, columns: list[str], path: str, row: int) -> Iterator["RecordBatch"]:
    batches = iter(table.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns))
    while True:
        with _explaining(f"{path}: what follows row {row} cannot be read"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch
        row += batch.num_rows


def _records(batch: "RecordBatch", path: str, rows_before: int) -> list[dict[str, object]]:
    """A batch as Python values. On an error the batch is halved to find the row, which the library does not name."""
    try:
        with _explaining(f"{path}, row {rows_before + 1} cannot be read", _OF_A_VALUE):
            return batch.to_pylist()
    except DataError:
        if batch.num_rows == 1:
            raise
    half = batch.num_rows // 2
    return _records(batch.slice(0, half), path, rows_before) + _records(batch.slice(half), path, rows_before + half)


@contextmanager
def _explaining(what: str, remedy: str = "copy the file again, or write it anew") -> Iterator[None]:
    """Turns the errors of the library, of Python and of the system into DataError, with `what` in front."""
    try:
        yield
    except MegaSLMError:
        raise
    except Exception as error:
        raise DataError(f"{what}: {type(error).__name__}: {error}; {remedy}") from error


def _first_byte(group: "RowGroupMetaData") -> int:
    column = group.column(0)
    return min(offset for offset in (column.dictionary_page_offset, column.data_page_offset) if offset is not None)


def _columns(table: "ParquetFile", file_range: FileRange, source: Source) -> list[str]:
    """The columns to read for the recipe's fields: of an object, only the named field."""
    schema = table.metadata.schema
    there = [schema.column(number).path for number in range(len(schema))]
    fields = list(fields_of(source))
    for field in fields:
        _require_column(there, field, file_range.file.path)
        twice = [path for path in _among(there, field.name) if there.count(path) > 1]
        if twice:
            raise DataError(
                f"{file_range.file.path} has {twice[0]!r} {there.count(twice[0])} times, which is ambiguous: "
                "write the file anew with unique names"
            )
    return list(dict.fromkeys(field.name for field in fields))


def _require_column(there: list[str], field: Field, path: str) -> None:
    if _among(there, field.name):
        return
    outer, _, inner = field.name.partition(".")
    inside = [column.removeprefix(f"{outer}.") for column in there if column.startswith(f"{outer}.")]
    finding = lacking(field, inner, f"{path}, {outer}", inside) if inside else lacking(field, field.name, path, there)
    raise NoSuchField(field, finding)


def _among(there: list[str], field: str) -> list[str]:
    return [path for path in there if path == field or path.startswith(f"{field}.")]
