"""Every format gives the same documents, and says what is wrong with a file."""

import gzip
import hashlib
import json
from itertools import pairwise
from pathlib import Path

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from megaslm.corpus import records
from megaslm.corpus.documents import FileRange, InvalidUtf8
from megaslm.corpus.files import describe
from megaslm.corpus.readers import is_divisible, read_documents
from megaslm.corpus.source_bytes import ReadLog
from megaslm.errors import DataError
from tests.messages import Says
from tests.reading import read, source_of

RECORDS = [{"text": "one\r\ntwo é", "book": "a"}, {"text": "", "book": "a"}, {"text": "three", "book": 7}]


def read_in_ranges(path: Path, count: int, **settings: object) -> list[list[str]]:
    """The texts of each of `count` equal ranges of a file, whose hashes are proved."""
    file, source, content = describe(path, label=path.name), source_of(path, **settings), path.read_bytes()
    bounds = [number * len(content) // count for number in range(count + 1)]
    ranges, log = [], ReadLog()
    for start, stop in pairwise(bounds):
        ranges.append([document.text for document in read_documents(FileRange(file, start, stop), source, log)])
        assert log.sha256 == hashlib.sha256(content[start:stop]).hexdigest()
    return ranges


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
    assert read(path)[2].location.endswith("line 4")


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
    ("content", "named"),
    [
        (b'{"text": "a"}\n{"text": "b"\n', "line 2"),
        (b'{"text": "a"}\n\n["b"]\n', "line 3"),
        (b'{"content": "a", "id": 1}\n', "line 1"),
        (b'{"text": null}\n', "line 1"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', "line 2"),
        (b'{"text": "\\ud800"}\n', "line 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, named: str, says: Says) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError) as refused:
        read(tmp_path / "a.jsonl")
    says(refused, "a.jsonl", named)


def test_a_missing_group_field_is_named(tmp_path: Path, says: Says) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n')
    with pytest.raises(DataError) as refused:
        read(tmp_path / "a.jsonl", group_field="book")
    says(refused, "line 1", "group_field = book: ")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("corruption", ["truncated", "not compressed"])
def test_a_corrupt_compressed_file_is_named(tmp_path: Path, suffix: str, corruption: str, says: Says) -> None:
    content = lines(RECORDS * 2000)
    compress = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[suffix]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(content if corruption == "not compressed" else compress(content)[:-20])
    with pytest.raises(DataError) as refused:
        read(path)
    says(refused, "a.jsonl")


@pytest.mark.parametrize("ending", ["\n", ""])
def test_pieces_share_out_the_lines_wherever_they_begin(tmp_path: Path, ending: str) -> None:
    texts = ["", "é" * 7, "x", "a longer line, longer than a range", "y", "z"] * 2
    content = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts) + ending
    (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
    size = (tmp_path / "a.jsonl").stat().st_size
    for count in (1, 2, 3, 7, size - 1, size):
        ranges = read_in_ranges(tmp_path / "a.jsonl", count)
        assert [text for file_range in ranges for text in file_range] == texts
        assert count == 1 or sum(map(bool, ranges)) > 1


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_pieces_share_out_the_documents_between_separators(tmp_path: Path, line_end: str) -> None:
    texts = ["one\ntwo\n\nthree", "x", "<|end|> inside", "long " * 9, "last"]
    content = "\n<|end|>\n\n<|end|>\n".join(["", *texts]) + "\n<|end|>\n"
    (tmp_path / "a.txt").write_bytes(content.replace("\n", line_end).encode())
    size = (tmp_path / "a.txt").stat().st_size
    for count in (1, 2, 3, 11, size):
        ranges = read_in_ranges(tmp_path / "a.txt", count, reader="text", separator="<|end|>")
        assert [text.replace(line_end, "\n") for file_range in ranges for text in file_range] == texts


def test_pieces_share_out_row_groups(tmp_path: Path) -> None:
    texts = [f"text {number} " * 50 for number in range(600)]
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet", row_group_size=100)
    for count in (1, 2, 5, 40):
        ranges = read_in_ranges(tmp_path / "a.parquet", count, reader="parquet")
        assert [text for file_range in ranges for text in file_range] == texts
        assert count == 1 or sum(map(bool, ranges)) > 1


def test_what_can_be_divided() -> None:
    jsonl = source_of(Path("x"))
    assert is_divisible("a.jsonl", jsonl)
    assert not is_divisible("a.jsonl.gz", jsonl)
    assert is_divisible("a.parquet", source_of(Path("x"), reader="parquet"))
    assert not is_divisible("a.txt", source_of(Path("x"), reader="text"))
    assert is_divisible("a.txt", source_of(Path("x"), reader="text", separator="-"))


def test_a_bad_line_in_the_middle_of_a_file_is_named_by_its_byte(tmp_path: Path, says: Says) -> None:
    good = b'{"text": "a"}\n'
    (tmp_path / "a.jsonl").write_bytes(good * 10 + b"{\n" + good * 10)
    with pytest.raises(DataError) as refused:
        read_in_ranges(tmp_path / "a.jsonl", 4)
    says(refused, "a.jsonl", "byte 140")


def test_fields_of_objects_in_a_record(tmp_path: Path) -> None:
    record = {"body": {"text": "a"}, "meta": {"set": {"name": "web"}}, "id.x": 1}
    settings = {"text_field": "body.text", "group_field": "id.x"}
    by_domain = {"domain": None, "domain_field": "meta.set.name", "domains": {"web": "d"}}
    (tmp_path / "a.jsonl").write_bytes(lines([record]))
    parquet.write_table(pyarrow.Table.from_pylist([record]), tmp_path / "a.parquet")
    for path, reader in ((tmp_path / "a.jsonl", "jsonl"), (tmp_path / "a.parquet", "parquet")):
        (document,) = read(path, reader=reader, **settings, **by_domain)
        assert (document.text, document.group, document.domain) == ("a", "1", "web")
        with pytest.raises(DataError, match=r"body.*txt"):
            read(path, reader=reader, text_field="body.txt")


def test_a_file_that_changes_meanwhile_is_named(tmp_path: Path, says: Says) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(RECORDS))
    file = describe(path, label="a")
    with path.open("ab") as more:
        more.write(b"\n")
    with pytest.raises(DataError) as refused:
        list(read_documents(FileRange(file, 0, file.bytes), source_of(path), ReadLog()))
    says(refused, "a.jsonl")


def test_a_record_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    monkeypatch.setattr(records, "LONGEST_RECORD_BYTES", 2000)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' + b"x" * 5000)
    with pytest.raises(DataError) as refused:
        read(tmp_path / "a.jsonl")
    says(refused, "a.jsonl", "line 2")
    with pytest.raises(DataError) as refused:
        read(tmp_path / "a.jsonl", reader="text", separator="-")
    says(refused, "a.jsonl")


def test_a_missing_parquet_column_is_named(tmp_path: Path, says: Says) -> None:
    parquet.write_table(pyarrow.table({"content": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError) as refused:
        read(tmp_path / "a.parquet", reader="parquet")
    says(refused, "a.parquet", "text_field = text: ")


def test_a_null_in_a_parquet_column_is_named(tmp_path: Path, says: Says) -> None:
    parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "a.parquet")
    with pytest.raises(DataError) as refused:
        read(tmp_path / "a.parquet", reader="parquet")
    says(refused, "a.parquet", "row 2", "'text'", "null")


def test_what_is_not_parquet_is_named(tmp_path: Path, says: Says) -> None:
    (tmp_path / "a.parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError) as refused:
        read(tmp_path / "a.parquet", reader="parquet")
    says(refused, "a.parquet")


def test_a_text_file_that_is_not_utf8_is_named(tmp_path: Path, says: Says) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InvalidUtf8) as refused:
        read(tmp_path / "a.txt", reader="text")
    says(refused, "a.txt", "byte 3", "0xe9", "skip_invalid_utf8")
