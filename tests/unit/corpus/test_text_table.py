"""The table of docs/inputs.md: each reader, each compression, and what files hold that is odd."""

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow
import zstandard
from pyarrow import parquet

from megaslm.config.recipe import Source
from megaslm.corpus.documents import FileRange
from megaslm.corpus.files import find_files
from megaslm.corpus.readers import read_documents
from megaslm.corpus.source_bytes import ReadLog
from megaslm.errors import DataError
from tests.doc_tables import require_table

JSONL = b'{"text": "one"}\n{"text": "two"}\n'
JSON = b'[{"text": "one"}, {"text": "two"}]'
MARK = b"\xef\xbb\xbf"


def zstd(content: bytes, window_log: int = 20) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(content) + compressor.flush()


def line(second: str) -> bytes:
    """A file whose second line is odd."""
    return b'{"text": "one"}\n' + second.encode() + b"\n"


def table(column: pyarrow.Array, **more: pyarrow.Array) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": column, **more}), sink)
    return sink.getvalue()


def not_utf8() -> pyarrow.Array:
    raw = pyarrow.array([b"one", b"caf\xe9"], pyarrow.binary())
    return pyarrow.Array.from_buffers(pyarrow.string(), 2, raw.buffers())


TEXTS = pyarrow.array(["one", "two"])
PACKED: tuple[tuple[str, str, Callable[[bytes], bytes]], ...] = (
    ("", "plain", bytes), (".gz", "gzip", gzip.compress), (".zst", "zstd", zstd), (".bz2", "bzip2", bz2.compress),
    (".xz", "xz", lzma.compress),
)  # fmt: skip
MEMBERS: list[tuple[str, str, str, bytes]] = [
    *(("jsonl", f"a.jsonl{ending}", kind, pack(JSONL)) for ending, kind, pack in PACKED),
    *(("json", f"a.json{ending}", kind, pack(JSON)) for ending, kind, pack in PACKED),
    *(("text", f"a.txt{ending}", kind, pack(b"one")) for ending, kind, pack in PACKED),
    *(("tree", f"a.md{ending}", kind, pack(b"one")) for ending, kind, pack in PACKED[:3]),
    ("parquet", "a.parquet", "strings", table(TEXTS)),
    ("parquet", "a.parquet.gz", "the whole file compressed by gzip", gzip.compress(table(TEXTS))),
    ("jsonl", "a.JSONL", "file name ending in upper case", JSONL),
    ("jsonl", "a.json", "file name with another ending", JSONL),
    ("jsonl", ".a.jsonl", "hidden file", JSONL),
    ("jsonl", "a.jsonl", "gzip data, name without .gz", gzip.compress(JSONL)),
    ("jsonl", "a.jsonl.gz", "plain text, name with .gz", JSONL),
    ("jsonl", "a.jsonl.gz", "zstd data, name with .gz", zstd(JSONL)),
    ("jsonl", "a.jsonl.gz", "two members, padded", gzip.compress(line("")) + gzip.compress(JSONL[16:]) + bytes(64)),
    ("jsonl", "a.jsonl.gz", "cut off", gzip.compress(JSONL)[:-6]),
    ("jsonl", "a.jsonl.zst", "two frames", zstd(JSONL[:16]) + zstd(JSONL[16:])),
    ("jsonl", "a.jsonl.zst", "skippable and empty frames", b"\x50\x2a\x4d\x18\1\0\0\0x" + zstd(b"") + zstd(JSONL)),
    ("jsonl", "a.jsonl.zst", "window of 2 GiB (--long=31)", zstd(JSONL, 31)),
    ("jsonl", "a.jsonl.zst", "window of 4 GiB", b"\x28\xb5\x2f\xfd\0" + bytes([22 << 3]) + b"\1\0\0"),
    ("jsonl", "a.jsonl.zst", "cut off", zstd(JSONL)[:-4]),
    ("jsonl", "a.jsonl.zst", "other bytes after the last frame", zstd(JSONL) + b"garbage"),
    ("jsonl", "a.jsonl", "empty", b""),
    ("jsonl", "a.jsonl", "byte order mark", MARK + JSONL),
    ("jsonl", "a.jsonl", "integer of 5,000 digits in another field", line('{"text": "two", "n": ' + "7" * 5000 + "}")),
    ("jsonl", "a.jsonl", "NaN, Infinity in other fields", line('{"text": "two", "n": NaN, "m": -Infinity}')),
    ("jsonl", "a.jsonl", "100,000 nested lists in another field", line(f'{{"text": "two", "n": {"[" * 10**5}')),
    ("jsonl", "a.jsonl", "half a surrogate pair in another field", line('{"text": "two", "n": "\\ud83d"}')),
    ("jsonl", "a.jsonl", "half a surrogate pair in the text", line('{"text": "\\ud83d"}')),
    ("jsonl", "a.jsonl", "field given twice; the last value counts", line('{"text": "no", "text": "two"}')),
    ("jsonl", "a.jsonl", "text is null", line('{"text": null}')),
    ("jsonl", "a.jsonl", "text is a number", line('{"text": 2}')),
    ("jsonl", "a.jsonl", "text field missing", line('{"content": "two"}')),
    ("jsonl", "a.jsonl", "a list instead of an object", line('["two"]')),
    ("jsonl", "a.jsonl", "not UTF-8", line('{"text": "two"}').replace(b"two", b"caf\xe9")),
    ("jsonl", "a.jsonl", "one array of records", JSON),
    ("jsonl", "a.jsonl", "one array of records on several lines", JSON.replace(b"{", b"\n{")),
    ("json", "a.json", "an array on several lines", JSON.replace(b"{", b"\n  {\n    ")),
    ("json", "a.json", "an empty array", b"[]\n"),
    ("json", "a.json", "one record per line", JSONL),
    ("json", "a.json", "an object that contains the array", b'{"data": ' + JSON + b"}"),
    ("json", "a.json", "an array of strings", b'["one", "two"]'),
    ("json", "a.json", "a comma too many", JSON.replace(b"]", b", ]")),
    ("json", "a.json", "a comma missing", JSON.replace(b",", b"")),
    ("json", "a.json", "cut off", JSON[:-6]),
    ("json", "a.json", "cut off between records", JSON[:16]),
    ("json", "a.json", "a second array after the first", JSON + JSON),
    ("json", "a.json", "empty", b""),
    ("json", "a.json", "byte order mark", MARK + JSON),
    ("json", "a.json", "not JSON", JSON.replace(b": ", b" ")),
    ("json", "a.json", "not UTF-8", JSON.replace(b"two", b"caf\xe9")),
    ("json", "a.json", "gzip data, name without .gz", gzip.compress(JSON)),
    ("text", "a.txt", "not UTF-8", b"caf\xe9"),
    ("text", "a.txt", "byte order mark, kept", MARK + b"one"),
    ("parquet", "a.parquet", "large strings", table(TEXTS.cast(pyarrow.large_string()))),
    ("parquet", "a.parquet", "dictionary", table(TEXTS.dictionary_encode())),
    ("parquet", "a.parquet", "binary", table(TEXTS.cast(pyarrow.binary()))),
    ("parquet", "a.parquet", "null", table(pyarrow.array(["one", None]))),
    ("parquet", "a.parquet", "string that is not UTF-8", table(not_utf8())),
    ("parquet", "a.parquet", "string that is not UTF-8, in another column", table(TEXTS, other=not_utf8())),
    ("parquet", "a.parquet", "no rows", table(TEXTS[:0])),
    ("parquet", "a.parquet", "empty file", b""),
    ("parquet", "a.parquet", "cut off", table(TEXTS)[:-30]),
]


SAYS = (
    "line 1", "line 2", "record 1", "record 2", "record 3", "row 1", "row 2", "set reader: json", "gzip", "zstd",
    "bzip2", "xz", "window", "corrupt", "first bytes", "UTF-8", "JSON", "nested", "surrogate", "no such field",
    "expected a string", "expected [", "comma", "in the middle of it", "the end of the file",
    "not a readable parquet file", "only .jsonl", "only .txt", "only .parquet", "only .json or", "*.json", "hidden",
)  # fmt: skip


def outcome(folder: Path, reader: str, name: str, content: bytes) -> tuple[str, str]:
    """The documents of a folder with one file in it, and what the message says where it is refused."""
    (folder / name).write_bytes(content)
    source = Source.model_validate({"domain": "d", "reader": reader, "paths": [str(folder)]})
    try:
        ranges = [FileRange(file, 0, file.bytes) for file in find_files(source)]
        texts = [each.text for file_range in ranges for each in read_documents(file_range, source, ReadLog())]
    except DataError as error:
        message = str(error)
        assert str(folder) in message
        return "refused", ", ".join(word for word in SAYS if word in message.replace(name, ""))
    return "".join(f"`{json.dumps(text)}` " for text in texts).strip() or "none", ""


def test_the_table_of_text_files_is_what_is_done(tmp_path: Path) -> None:
    rows = []
    for number, (reader, name, what, content) in enumerate(MEMBERS):
        (folder := tmp_path / f"{number:02}").mkdir()
        rows.append([reader, name, what, *outcome(folder, reader, name, content)])
    require_table(
        "inputs.md", "text files", ["reader", "name", "what it is", "documents", "the message also names"], rows
    )
