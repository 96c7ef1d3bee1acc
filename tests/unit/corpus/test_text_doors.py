"""What readers give beside what the libraries give, and what they make of whatever a library raises."""

import bz2
import gzip
import io
import json
import lzma
import math
import struct
import tempfile
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from megaslm.config.recipe import Source
from megaslm.corpus import compression
from megaslm.corpus.documents import Document, FileRange, InvalidUtf8, describe, falls_within, key_of
from megaslm.corpus.readers import read_documents
from megaslm.corpus.source_bytes import ReadLog
from megaslm.errors import DataError

TEXTS = st.text(alphabet=st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=True) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
RECORDS = st.lists(st.fixed_dictionaries({"text": TEXTS, "group": VALUES}, optional={"other": VALUES}), max_size=6)


def read(path: Path, reader: str, **more: object) -> list[Document]:
    source = Source.model_validate({"domain": "d", "reader": reader, "paths": [str(path)], **more})
    file_range = FileRange(describe(path, path.name), 0, path.stat().st_size)
    return list(read_documents(file_range, source, ReadLog()))


def by_groups(documents: list[Document]) -> list[list[int]]:
    """The documents that share a group, by their places."""
    places: dict[str, list[int]] = {}
    for place, document in enumerate(documents):
        places.setdefault(document.group, []).append(place)
    return list(places.values())


def in_frames(packed: list[bytes], log: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=log)
    frames = []
    for content in packed:
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        frames.append(compressor.compress(content) + compressor.flush())
    return b"".join(frames)


@settings(max_examples=80, deadline=None)
@given(RECORDS, st.sampled_from(["", ".gz", ".zst"]), st.integers(10, 28), st.sampled_from(["\n", "\r\n"]))
def test_jsonl_is_read_as_json_reads_it(records: list[dict[str, Any]], suffix: str, log: int, line_end: str) -> None:
    lines = [(json.dumps(record) + line_end).encode() for record in records]
    packed = {"": b"".join(lines), ".gz": b"".join(map(gzip.compress, lines)), ".zst": in_frames(lines, log)}[suffix]
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / f"a.jsonl{suffix}"
        path.write_bytes(packed)
        documents = read(path, "jsonl", group_field="group")
        texts = [document.text for document in read(path, "jsonl")]
    plain = {"": bytes, ".gz": gzip.decompress, ".zst": by_the_library}[suffix](packed)
    again = [json.loads(line) for line in plain.decode().split(line_end) if line]
    assert texts == [document.text for document in documents] == [record["text"] for record in again]
    for record, document in zip(again, documents, strict=True):
        key = key_of(record["group"])
        assert document.group == (record["text"] if key is None else key)


def by_the_library(packed: bytes) -> bytes:
    reader = zstandard.ZstdDecompressor(max_window_size=2**31)
    return reader.stream_reader(io.BytesIO(packed), read_across_frames=True).read()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(TEXTS, st.none() | st.integers(-5, 5)), max_size=9), st.integers(1, 4), st.booleans())
def test_parquet_is_read_as_pyarrow_reads_it(
    rows: list[tuple[str, int | None]], group_rows: int, as_dictionary: bool
) -> None:
    texts, groups = [text for text, _ in rows], [group for _, group in rows]
    column = pyarrow.array(texts, pyarrow.string())
    meta = pyarrow.array([None if group is None else {"id": group, "x": 1.5} for group in groups],
                         pyarrow.struct([("id", pyarrow.int64()), ("x", pyarrow.float64())]))  # fmt: skip
    table = pyarrow.table({"text": column.dictionary_encode() if as_dictionary else column, "meta": meta})
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "a.parquet"
        parquet.write_table(table, path, row_group_size=group_rows)
        documents = read(path, "parquet", group_field="meta.id")
        expected = parquet.read_table(path).to_pylist()
    assert [document.text for document in documents] == [row["text"] for row in expected]
    keys = [row["text"] if row["meta"] is None else str(row["meta"]["id"]) for row in expected]
    assert [document.group for document in documents] == keys


@settings(max_examples=120, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.sampled_from([".gz", ".zst"]), st.data())
def test_a_file_that_was_cut_is_never_taken_for_one_that_ends(
    texts: list[str], suffix: str, data: st.DataObject
) -> None:
    frames = [(json.dumps({"text": text}) + "\n").encode() for text in texts]
    members = [gzip.compress(each) if suffix == ".gz" else in_frames([each], 20) for each in frames]
    whole = b"".join(members)
    ends = [sum(map(len, members[:count])) for count in range(len(members) + 1)]
    size = data.draw(st.integers(1, len(whole)))
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / f"a.jsonl{suffix}"
        path.write_bytes(whole[:size])
        if size in ends:
            assert [document.text for document in read(path, "jsonl")] == texts[: ends.index(size)]
        else:
            with pytest.raises(DataError, match=f"a.jsonl{suffix}"):
                read(path, "jsonl")


def test_a_sound_frame_is_read_or_what_keeps_it_from_that_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(in_frames([b'{"text": "a"}\n', b'{"text": "b"}\n'], 31))
    assert [document.text for document in read(path, "jsonl")] == ["a", "b"]
    for flags, frame_id in ((1, b"\7"), (2, b"\7\1"), (0b0010_0011, b"\7\1\0\1")):
        window = b"" if flags & 0b0010_0000 else bytes([10 << 3])
        path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes([flags]) + window + frame_id + b"\x03\x01\0\0abc")
        with pytest.raises(DataError, match=r"a.jsonl.zst: .*-D"):
            read(path, "jsonl")
    for exponent, mantissa, size in ((22, 0, "4 GiB"), (21, 1, r"2\.25 GiB"), (31, 7, "3840 GiB")):
        path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes([0, exponent << 3 | mantissa]) + b"\x01\x00\x00")
        with pytest.raises(DataError, match=rf"a.jsonl.zst.*{size}.*--long"):
            read(path, "jsonl")


def test_unpacking_takes_steps_of_bounded_size() -> None:
    packed = zstandard.ZstdCompressor().compress(bytes(40 * 2**20))
    assert len(packed) < 2**14
    reader = compression.unpacked("a.zst", io.BytesIO(packed + packed))  # type: ignore[arg-type]
    assert sum(len(block) for block in iter(lambda: reader.read(2**20), b"")) == 80 * 2**20


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.jsonl", gzip.compress(b'{"text": "a"}\n'), "gzip"),
        ("a.jsonl", zstandard.ZstdCompressor().compress(b'{"text": "a"}\n'), "zstd"),
        ("a.jsonl", bz2.compress(b'{"text": "a"}\n'), "bzip2"),
        ("a.jsonl.xz", lzma.compress(b'{"text": "a"}\n'), "xz"),
        ("a.jsonl.gz", zstandard.ZstdCompressor().compress(b'{"text": "a"}\n'), "zstd"),
        ("a.jsonl.zst", gzip.compress(b'{"text": "a"}\n'), "gzip"),
        ("a.txt", gzip.compress(b"a"), "gzip"),
        ("a.txt.gz", zstandard.ZstdCompressor().compress(b"a"), "zstd"),
        ("a.txt.lz4", b"\x04\x22\x4d\x18\x60\x40\x82\xff\xff", "lz4"),
        ("a.txt", b"PAR1\x15\x04\xff", "parquet"),
    ],
    ids=lambda value: value if isinstance(value, str) else "content",
)
def test_a_file_under_a_wrong_name_is_called_what_it_is(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}.*{kind}"):
        read(tmp_path / name, "text" if ".txt" in name else "jsonl")


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".GZ"])
def test_a_packed_text_is_a_document_and_of_a_tree_is_none(tmp_path: Path, suffix: str) -> None:
    pack = zstandard.ZstdCompressor().compress if suffix == ".zst" else gzip.compress
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(pack("one\r\ntwo é\n-\nthree".encode()))
    assert [each.text for each in read(path, "text")] == ["one\r\ntwo é\n-\nthree"]
    assert [each.text for each in read(path, "text", separator="-")] == ["one\r\ntwo é", "three"]
    with pytest.raises(InvalidUtf8, match=rf"a.txt{suffix}"):
        read(path, "tree")


DEEP = b'{"text": "b", "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    "line", [b'{"text": "b", "x": ' + b"9" * 5000 + b"}", b'{"x": [-' + b"1" * 9999 + b'], "text": "b"}']
)
def test_numbers_that_nobody_asked_for_are_not_converted(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' + line)
    assert [each.text for each in read(tmp_path / "a.jsonl", "jsonl")] == ["a", "b"]


@pytest.mark.parametrize("line", [
    DEEP, b'{"text": "b", "x": ' + b"9" * 5000 + b",}", b'{"text": ' + b"9" * 5000 + b"}", b"9" * 5000,
    b'{"text": NaN}',
    b'{"text": {"a": 1}}', b'{"text": "b" "c"}', b"\xef\xbb\xbf{}", b'{"text": "\xed\xa0\x80"}',
])  # fmt: skip
def test_whatever_is_wrong_with_a_line_its_number_is_said(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' + line + b"\n")
    with pytest.raises(DataError, match=r"a\.jsonl, line 2"):
        read(tmp_path / "a.jsonl", "jsonl")


def test_a_huge_number_is_a_group_of_its_own(tmp_path: Path) -> None:
    huge = "7" * 5000
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{n}", "g": {huge}{n // 2}}}\n' for n in range(4)))
    assert by_groups(read(tmp_path / "a.jsonl", "jsonl", group_field="g")) == [[0, 1], [2, 3]]


def not_utf8(good: list[bytes]) -> pyarrow.Array:
    raw = pyarrow.array(good, pyarrow.binary())
    return pyarrow.Array.from_buffers(pyarrow.string(), len(good), raw.buffers())


BAD = [b"first", b"caf\xe9", b"third"]


@pytest.mark.parametrize("where", ["text", "group", "domain", "struct", "list"])
def test_a_value_that_cannot_be_read_is_named_by_its_row(tmp_path: Path, where: str) -> None:
    column: pyarrow.Array = not_utf8(BAD)
    columns = {name: pyarrow.array(["a", "b", "c"]) for name in ("text", "group", "domain") if name != where}
    if where == "struct":
        column = pyarrow.StructArray.from_arrays([column], ["id"])
    if where == "list":
        column = pyarrow.ListArray.from_arrays([0, 1, 2, 3], column)
    more: dict[str, object] = {"group_field": "group"}
    if where in ("struct", "list"):
        columns["meta"] = column
        more = {"group_field": "meta.id" if where == "struct" else "meta"}
    else:
        columns[where] = column
    if where == "domain":
        more = {"domain_field": "domain", "domain": None, "domains": {"first": "d"}}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet, row 2"):
        read(tmp_path / "a.parquet", "parquet", **more)


def test_columns_that_nobody_asked_for_are_not_converted(tmp_path: Path) -> None:
    beside = pyarrow.StructArray.from_arrays([pyarrow.array(["x", "y", "z"]), not_utf8(BAD)], ["id", "title"])
    table = pyarrow.table({
        "text": ["a", "b", "c"], "meta": beside, "raw": not_utf8(BAD),
        "time": pyarrow.array([2**62, 1, 2], pyarrow.timestamp("us")),
        "price": pyarrow.array([Decimal("1.5"), None, None], pyarrow.decimal128(30, 3)),
        "many": [[1] * 1000, None, []],
    })  # fmt: skip
    parquet.write_table(table, tmp_path / "a.parquet")
    documents = read(tmp_path / "a.parquet", "parquet", group_field="meta.id")
    assert [(each.text, each.group) for each in documents] == [("a", "x"), ("b", "y"), ("c", "z")]
    with pytest.raises(DataError, match=r"a\.parquet, row 1"):
        read(tmp_path / "a.parquet", "parquet", group_field="time")


def test_a_column_that_is_there_twice_is_refused_where_it_is_asked_for(tmp_path: Path) -> None:
    texts, numbers = pyarrow.array(["a", "b"]), pyarrow.array([1, 2])
    twice = pyarrow.StructArray.from_arrays([texts, numbers], ["id", "id"])
    columns = {"text": texts, "n": numbers, "m": twice, "l": pyarrow.array([[1], [2]])}
    for asked, names in (("text", ["text", "text"]), ("n", ["text", "n", "n"]), ("m.id", ["text", "m"]),
                         ("l", ["text", "l", "l"])):  # fmt: skip
        table = pyarrow.Table.from_arrays([columns[name] for name in names], names=names)
        parquet.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(DataError, match=rf"a\.parquet.*'{asked}"):
            read(tmp_path / "a.parquet", "parquet", group_field=None if asked == "text" else asked)
        if asked != "text":
            assert [each.text for each in read(tmp_path / "a.parquet", "parquet")] == ["a", "b"]


@pytest.mark.parametrize("corruption", ["page", "footer", "cut", "empty", "encrypted", "no text"])
def test_parquet_that_cannot_be_read_is_named(tmp_path: Path, corruption: str) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(
        pyarrow.table({"text": [f"text {n} {n * 7919}" for n in range(3000)]}), path, row_group_size=1000
    )
    content = bytearray(path.read_bytes())
    match corruption:
        case "page":
            content[4 : len(content) // 2] = bytes(reversed(content[4 : len(content) // 2]))
        case "footer":
            content[-200:-8] = bytes(192)
        case "cut":
            del content[len(content) // 2 :]
        case "empty":
            content.clear()
        case "encrypted":
            content[:4] = content[-4:] = b"PARE"
        case "no text":
            content[:] = gzip.compress(bytes(content))
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet"):
        read(path, "parquet")


@pytest.mark.parametrize("value", [None, math.nan, "", " \t", [], {}, [None], {"a": None, "b": [""]}, Decimal("NaN")])
def test_a_missing_key_is_no_key(value: object) -> None:
    assert key_of(value) is None


@pytest.mark.parametrize(
    ("values", "is_one"),
    [
        ((7, 7.0, "7"), True), ((True, 1), False), ((0, False), False), ((0, None), False), ((0.5, 0), False),
        (({"a": 1, "b": 2}, {"b": 2, "a": 1}), True), ((["a", "b"], ["b", "a"]), False), (("None", None), False),
        ((" a", "a"), False), ((math.inf, -math.inf), False), ((2**70, float(2**70)), True),
        ((datetime(2020, 1, 1), datetime(2020, 1, 2)), False), ((7, Decimal("7.00"), Decimal(7)), True),
        ((7.5, Decimal("7.50")), True), ((70, Decimal("70.0"), Decimal("7E1")), True), ((Decimal(70), 7), False),
        (([7], [7.0], [Decimal(7)], ["7"]), True), (({"a": [1, None]}, {"a": [1.0, math.nan]}), True),
        (([[1], 2], [1, [2]]), False), (({"a": 1}, {"b": 1}), False),
    ],
)  # fmt: skip
def test_which_keys_are_one(values: tuple[object, ...], is_one: bool) -> None:
    assert (len({key_of(value) for value in values}) == 1) == is_one


@pytest.mark.parametrize("missing", ["null", "NaN", '""', "[]", '{"a": null}'])
def test_documents_without_a_group_are_grouped_by_their_texts(tmp_path: Path, missing: str) -> None:
    texts = ["a", "b", "a", "c"]
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{text}", "g": {missing}}}\n' for text in texts))
    documents = read(tmp_path / "a.jsonl", "jsonl", group_field="g")
    assert by_groups(documents) == by_groups(read(tmp_path / "a.jsonl", "jsonl")) == [[0, 2], [1], [3]]


def test_a_group_in_an_object_that_is_null_is_missing_and_one_that_is_nowhere_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "meta": null}\n{"text": "b", "meta": {"url": null}}\n')
    assert [each.group for each in read(tmp_path / "a.jsonl", "jsonl", group_field="meta.url")] == ["a", "b"]
    for line in ('{"text": "c"}', '{"text": "c", "meta": {}}', '{"text": "c", "meta": []}'):
        (tmp_path / "b.jsonl").write_text(f'{{"text": "a", "meta": {{"url": "u"}}}}\n{line}\n')
        with pytest.raises(DataError, match=r"meta\.url.*b\.jsonl, line 2"):
            read(tmp_path / "b.jsonl", "jsonl", group_field="meta.url")


def test_a_group_that_is_nested_too_deeply_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "g": ' + "[" * 600 + "1" + "]" * 600 + "}\n")
    assert len(read(tmp_path / "a.jsonl", "jsonl")) == 1
    with pytest.raises(DataError, match=r"a\.jsonl, line 1.*'g'"):
        read(tmp_path / "a.jsonl", "jsonl", group_field="g")


def test_half_of_a_surrogate_pair_is_a_key_like_others(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{n}", "g": "u\\ud83{n // 2}"}}\n' for n in range(4)))
    documents = read(tmp_path / "a.jsonl", "jsonl", group_field="g")
    assert by_groups(documents) == [[0, 1], [2, 3]]
    assert isinstance(falls_within(0.5, "heldout-0", documents[0].group), bool)


def test_a_missing_domain_is_called_null(tmp_path: Path) -> None:
    values = ["null", '"web"', "NaN", "true", "7.0", '""', '"\\ud83d"']
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "a", "d": {value}}}\n' for value in values))
    documents = read(tmp_path / "a.jsonl", "jsonl", domain=None, domain_field="d", domains={"web": "web"})
    assert [each.domain for each in documents] == ["null", "web", "null", "True", "7", "", "\ud83d"]


def test_bytes_that_look_like_a_format_are_text_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"BZh is how bzip2 begins, PK\x03\x04 how zip does")
    assert len(read(tmp_path / "a.txt", "text")) == 1
    assert compression.what_it_is(struct.pack("<I", 0x28B52FFD)) is None


def test_a_page_that_is_not_what_was_written_is_refused_where_the_file_can_tell(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["first", "second"]})
    parquet.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    path.write_bytes(path.read_bytes().replace(b"second", b"secund"))
    with pytest.raises(DataError, match=r"a\.parquet.*row 0"):
        read(path, "parquet")
