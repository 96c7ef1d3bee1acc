"""Every format gives the same documents, and says what is wrong with a file."""

import gzip
import json
from pathlib import Path

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from megaslm.config.recipe import Source
from megaslm.data.documents import Document, InvalidUtf8
from megaslm.data.files import describe
from megaslm.data.readers import read_documents
from megaslm.errors import DataError

RECORDS = [{"text": "one\r\ntwo é", "book": "a"}, {"text": "", "book": "a"}, {"text": "three", "book": 7}]


def read(path: Path, **settings: object) -> list[Document]:
    source = Source.model_validate(
        {"domain": "d", "reader": "jsonl", "paths": [str(path)], "licence": "none", **settings}
    )
    return list(read_documents(describe(path, label=path.name), source))


def lines(records: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_jsonl(tmp_path: Path, suffix: str) -> None:
    first, second = lines(RECORDS[:2]), b"\n" + lines(RECORDS[2:])
    path = tmp_path / f"a.jsonl{suffix}"
    # Two members or frames, as files joined by `cat` have them.
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[suffix]
    path.write_bytes(compress(first) + compress(second))
    assert [document.text for document in read(path)] == ["one\r\ntwo é", "", "three"]
    assert [document.group for document in read(path, group_field="book")] == ["a", "a", "7"]
    assert read(path)[2].origin.endswith("line 4")


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"text {number}" for number in range(600)]
    parquet.write_table(pyarrow.table({"content": texts, "book": list(range(600)), "other": [0.5] * 600}), path)
    documents = read(path, reader="parquet", text_field="content", group_field="book")
    assert [document.text for document in documents] == texts
    assert [document.group for document in documents] == [str(number) for number in range(600)]


def test_a_text_file_is_one_document_with_its_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\n")
    (document,) = read(tmp_path / "a.txt", reader="text")
    assert (document.text, document.group) == ("one\r\ntwo\n", "one\r\ntwo\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": "b"\n', r"a.jsonl, line 2 is not JSON"),
        (b'{"text": "a"}\n\n["b"]\n', r"a.jsonl, line 3 holds a JSON list; expected an object"),
        (b'{"content": "a", "id": 1}\n', r"a.jsonl, line 1 has no field 'text'; it has content, id: set text_field"),
        (b'{"text": null}\n', r"a.jsonl, line 1: field 'text' is a NoneType; expected a string"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', r"a.jsonl, line 2 is not UTF-8: byte 10 of it is 0xff"),
        (b'{"text": "\\ud800"}\n', r"a.jsonl, line 1: character 0 of the text is half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.jsonl")


def test_a_missing_group_field_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n')
    with pytest.raises(DataError, match="line 1 has no field 'book'"):
        read(tmp_path / "a.jsonl", group_field="book")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["truncated", "not compressed"])
def test_a_damaged_compressed_file_is_named(tmp_path: Path, suffix: str, damage: str) -> None:
    content = lines(RECORDS * 2000)
    compress = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[suffix]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(content if damage == "not compressed" else compress(content)[:-20])
    with pytest.raises(DataError, match=r"a.jsonl.* is damaged or not compressed as its name says"):
        read(path)


def test_a_missing_parquet_column_is_named(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"content": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet has no column 'text'; it has content"):
        read(tmp_path / "a.parquet", reader="parquet")


def test_a_null_in_a_parquet_column_is_named(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet, row 2: field 'text' is a NoneType"):
        read(tmp_path / "a.parquet", reader="parquet")


def test_what_is_not_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"a.parquet is not a readable parquet file"):
        read(tmp_path / "a.parquet", reader="parquet")


def test_a_text_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InvalidUtf8, match=r"a.txt is not UTF-8: byte 3 is 0xe9; .*skip_invalid_utf8"):
        read(tmp_path / "a.txt", reader="text")
