"""The records of a task's files, in the formats in which evaluation sets are published."""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow.parquet

from megaslm.config.task import Task
from megaslm.errors import DataError
from megaslm.files import looked_in

_REMEDY = "correct `format` in the task file, or fetch the file as it is published"
Record = Mapping[str, Any]


def records_of(task: Task, data: Path, files: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """The records of a task's files with their places in words, in the order of the files' names and of the files.

    Raises:
        DataError: a file is missing, is of another format, or holds no record.
    """
    for path in _found(data, files):
        count = 0
        for number, record in enumerate(_read(task, path), start=1):
            if not isinstance(record, Mapping):
                raise DataError(f"{path}, record {number}: holds a {type(record).__name__}; expected fields and values")
            count += 1
            if not any(re.search(pattern, str(record.get(field, ""))) for field, pattern in task.leave_out.items()):
                yield f"{path}, record {number}", record
        if not count:
            raise DataError(f"{path}: holds no record of the format {task.format}; {_REMEDY}")


def _found(data: Path, files: Sequence[str]) -> Iterator[Path]:
    for pattern in files:
        problem = f"{pattern!r} of the task file: must be a path or a glob below --data"
        if Path(pattern).is_absolute() or not Path(pattern).parts:
            raise DataError(problem)
        try:
            found = sorted(data.glob(pattern))
        except ValueError as error:
            raise DataError(f"{problem}: {error}") from error
        if not found:
            where = looked_in(data / pattern)
            raise DataError(
                f"{data / pattern}: no such file{where}; put the task's data there, as it is published, or give its "
                "folder with --data"
            )
        yield from found


def _read(task: Task, path: Path) -> Iterator[Any]:
    try:
        match task.format:
            case "jsonl":
                yield from (json.loads(line) for line in _text(path).split("\n") if line.strip())
            case "json":
                yield from _of_kind(json.loads(_text(path)), list, path, "an array")
            case "json-object":
                yield from _of_kind(json.loads(_text(path)), dict, path, "an object").values()
            case "json-files":
                yield json.loads(_text(path))
            case "csv":
                yield from csv.DictReader(io.StringIO(_text(path), newline=""), fieldnames=task.columns or None)
            case "parquet":
                for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
                    yield from batch.to_pylist()
            case "xml":
                for element in ElementTree.fromstring(_text(path)).iter(task.element):
                    yield {**element.attrib, **{child.tag: child.text or "" for child in element}}
            case "text":
                yield from (each.groupdict() for each in re.finditer(task.record_pattern or "", _text(path), re.DOTALL))
    except (ValueError, ElementTree.ParseError, csv.Error, RecursionError, pyarrow.ArrowInvalid) as error:
        raise DataError(f"{path}: is not {task.format}, as the task file says ({error}); {_REMEDY}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")


def _of_kind(value: Any, kind: type, path: Path, expected: str) -> Any:
    if not isinstance(value, kind):
        raise DataError(f"{path}: holds a JSON {type(value).__name__}; expected {expected} of records: {_REMEDY}")
    return value
