"""A file that is one array of records gives the same documents as its records one a line."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaslm.corpus import json_array, records
from megaslm.corpus.documents import FileRange
from megaslm.corpus.files import describe
from megaslm.corpus.json_array import array_records
from megaslm.corpus.source_bytes import ReadLog
from megaslm.errors import DataError
from tests.messages import Says
from tests.reading import read

AWKWARD = ['"', "\\", '\\"', "]}", '{"a": [', "é\u2028𝄞", "", "\n\r\t", "x" * 5000, '\\\\"']
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(AWKWARD),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_an_array_is_read_like_lines(tmp_path: Path, indent: int | None, ending: str) -> None:
    path = tmp_path / f"a.json{ending}"
    content = json.dumps([{"text": text, "meta": {"n": [1]}} for text in AWKWARD], indent=indent).encode()
    path.write_bytes(gzip.compress(content) if ending else content)
    documents = read(path, reader="json")
    assert [document.text for document in documents] == AWKWARD
    assert documents[2].location.endswith(f"a.json{ending}, record 3")


@given(items=st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=5), step=st.integers(1, 60))
def test_every_object_is_found_wherever_the_reading_stops(
    tmp_path_factory: pytest.TempPathFactory, items: list[dict[str, object]], step: int
) -> None:
    path = tmp_path_factory.mktemp("array") / "a.json"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(json_array, "_STEP_BYTES", step)
        for ascii_only in (True, False):
            content = json.dumps(items, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
            path.write_bytes(content)
            found = list(array_records(FileRange(describe(path, "a"), 0, len(content)), ReadLog()))
            assert [json.loads(record.content.decode("utf-8", "surrogatepass")) for record in found] == items


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b'{"text": "a"}\n{"text": "b"}\n', "reader: jsonl"),
        (b'[{"text": "a"}, ["b"]]', "record 2"),
        (b'[{"text": "a"} {"text": "b"}]', "record 1"),
        (b'[{"text": "a"}, ]', "record 2"),
        (b'[{"text": "a"}, {"text": "b', "record 2"),
        (b'[{"text": "a"}, {"text": "b"', "record 2"),
        (b'[{"text": "a"}', "record 1"),
        (b'[{"text": "a"}] []', "a.json"),
        (b'[{"text": "a"}, {"text" "b"}]', "record 2"),
        (b'[{"text": "a"}, {"text": 1}]', "record 2"),
        (b"", "a.json"),
    ],
)
def test_what_is_no_array_of_records_is_named(tmp_path: Path, content: bytes, named: str, says: Says) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError) as refused:
        read(tmp_path / "a.json", reader="json")
    says(refused, "a.json", named)


def test_a_record_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    monkeypatch.setattr(records, "LONGEST_RECORD_BYTES", 2000)
    monkeypatch.setattr(json_array, "_STEP_BYTES", 100)
    (tmp_path / "a.json").write_bytes(b'[{"text": "a"}, {"text": "' + b"x" * 50_000)
    with pytest.raises(DataError) as refused:
        read(tmp_path / "a.json", reader="json")
    says(refused, "a.json", "record 2")
