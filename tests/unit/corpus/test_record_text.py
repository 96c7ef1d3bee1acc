"""How a record with fields becomes a text."""

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from megaslm.errors import DataError
from tests.messages import Says
from tests.reading import read

QUESTION = {"query": "1 + 1?", "response": "2", "meta": {"by": "me", "none": None}, "a.b": "dotted", "extra": 7}
TURNS = [("system", "Be brief."), ("user", "1 + 1?"), ("assistant", "2\n"), ("user", "")]
CONVERSATION = "system:\nBe brief.\n\nuser:\n1 + 1?\n\nassistant:\n2\n\n\nuser:\n"


def write(folder: Path, record: dict[str, object], reader: str) -> Path:
    """A file of one record."""
    path = folder / f"a.{reader}"
    if reader == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist([record]), path)
    else:
        path.write_text(json.dumps([record] if reader == "json" else record), encoding="utf-8")
    return path


@pytest.mark.parametrize("reader", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{query}\n{response}", "1 + 1?\n2"),
        ("{query}{query} by {meta.by}", "1 + 1?1 + 1? by me"),
        ("{{{query}}} {{}}", "{1 + 1?} {}"),
        ("{a.b}.", "dotted."),
    ],
)
def test_a_template_names_fields_in_braces(tmp_path: Path, reader: str, template: str, text: str) -> None:
    (document,) = read(write(tmp_path, QUESTION, reader), reader=reader, template=template)
    assert (document.text, document.group) == (text, text)


@pytest.mark.parametrize("reader", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("form", ["role and content", "from and value"])
def test_a_conversation_has_a_line_for_each_role(tmp_path: Path, reader: str, form: str) -> None:
    if form == "role and content":
        messages = [{"role": role, "content": content, "weight": 1} for role, content in TURNS]
    else:
        names = {"user": "human", "assistant": "gpt"}
        messages = [{"from": names.get(role, role), "value": content} for role, content in TURNS]
    record = {"id": "a", "data": {"messages": messages}}
    path = write(tmp_path, record, reader)
    (document,) = read(path, reader=reader, messages_field="data.messages")
    assert (document.text, document.group) == (CONVERSATION, CONVERSATION)
    assert read(path, reader=reader, messages_field="data.messages", group_field="id")[0].group == "a"


@pytest.mark.parametrize("reader", ["jsonl", "parquet"])
@pytest.mark.parametrize("template", ["{query} {answer}", "{query} {extra}", "{query} {meta.none}"])
def test_a_record_that_a_template_does_not_fit_is_named(tmp_path: Path, reader: str, template: str, says: Says) -> None:
    with pytest.raises(DataError) as refused:
        read(write(tmp_path, QUESTION, reader), reader=reader, template=template)
    says(refused, f"a.{reader}")


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        (None, "null"),
        ("user: hello", "a string"),
        ([], "messages"),
        (["hello"], "message 1"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": []}], "message 2"),
        ([{}], "message 1"),
        ([{"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}], "tool_calls"),
        ([{"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}], "tool_calls"),
        ([{"role": "assistant", "content": None, "tool_calls": None}], "content"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "content"),
        ([{"from": None, "value": "a"}], "from"),
    ],
)
def test_what_is_no_conversation_is_named(tmp_path: Path, messages: object, named: str, says: Says) -> None:
    path = write(tmp_path, {"messages": messages, "id": 1}, "jsonl")
    with pytest.raises(DataError) as refused:
        read(path, messages_field="messages")
    says(refused, "a.jsonl", "line 1", named)


def test_a_null_message_in_a_parquet_file_is_named_by_its_row(tmp_path: Path, says: Says) -> None:
    rows = [[{"role": "user", "content": "a"}], [{"role": "user", "content": None}]]
    parquet.write_table(pyarrow.table({"messages": rows}), tmp_path / "a.parquet")
    with pytest.raises(DataError) as refused:
        read(tmp_path / "a.parquet", reader="parquet", messages_field="messages")
    says(refused, "a.parquet", "row 2", "message 1", "content")


def test_half_a_surrogate_pair_in_a_rendered_text_is_named(tmp_path: Path, says: Says) -> None:
    path = write(tmp_path, {"query": "a", "response": "\ud800"}, "jsonl")
    with pytest.raises(DataError) as refused:
        read(path, template="{query} {response}")
    says(refused, "a.jsonl", "line 1", "character 2")
