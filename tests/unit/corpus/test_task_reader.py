"""What a recipe keeps of its documents, and what it says of the rest."""

import hashlib
import json
from pathlib import Path

import pytest

from megaslm.config.recipe import Recipe
from megaslm.corpus.tasks import TaskReader, plan_tasks
from megaslm.errors import DataError
from tests.messages import Says


def reader_of(path: Path, part_bytes: int = 64_000_000, **source: object) -> TaskReader:
    given = {"domain": "a", "reader": "jsonl", "paths": [str(path)], **source}
    (task,) = plan_tasks(
        Recipe.model_validate(
            {"name": "n", "licence": "MIT", "seq_len": 8, "tokenizer": {"huggingface": "x"}, "sources": [given]}
        )
    )
    return TaskReader(task)


def write(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_a_share_of_the_documents_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [{"text": f"document {number}", "site": "one"} for number in range(2000)])

    def kept(fraction: float, **source: object) -> set[str]:
        reader = reader_of(path, keep_fraction=fraction, **source)
        texts = {document.text for document in reader.documents()}
        assert len(texts) + reader.left_out["sources.0.keep_fraction"] == 2000
        return texts

    assert len(kept(1.0)) == 2000
    assert 450 < len(kept(0.25)) < 550
    assert kept(0.25) < kept(0.5)
    # Groups decide the split, not the share.
    assert kept(0.25, group_field="site") == kept(0.25)


def test_filters_leave_out_and_count(tmp_path: Path) -> None:
    texts = ["short", "a proof of it", "lorem ipsum proof", "a proof that is much too long"]
    filters = [
        {"name": "length", "min_characters": 10, "max_characters": 20},
        {"name": "regex", "keep": "(?i)PROOF"},
        {"name": "regex", "drop": "^lorem"},
    ]
    reader = reader_of(
        write(tmp_path / "t.jsonl", [{"text": text} for text in [*texts, "0123456789"]]), filters=filters
    )
    assert [document.text for document in reader.documents()] == ["a proof of it"]
    assert reader.left_out == {"sources.0.filters.0": 2, "sources.0.filters.1": 1, "sources.0.filters.2": 1}


def test_a_field_decides_the_domain(tmp_path: Path, says: Says) -> None:
    records = [{"text": name, "set": name} for name in ("Web", "Code", "Web", "Spam")]
    by_field = {"domain": None, "domain_field": "set"}
    path = write(tmp_path / "t.jsonl", records)
    reader = reader_of(path, **by_field, domains={"Web": "web", "Code": "web", "Spam": None})
    assert [(document.text, document.domain) for document in reader.documents()] == [
        ("Web", "web"), ("Code", "web"), ("Web", "web"),
    ]  # fmt: skip
    assert reader.left_out == {"sources.0.domains.Spam": 1}
    with pytest.raises(DataError) as refused:
        list(reader_of(path, **by_field, domains={"Web": "web", "Code": "code"}).documents())
    says(refused, "t.jsonl", "line 4", "'Spam'", "sources.0.domains")


@pytest.mark.parametrize("key", ["text_field", "group_field"])
def test_a_record_is_to_be_left_out_only_where_one_before_it_has_the_field(
    tmp_path: Path, says: Says, key: str
) -> None:
    has, lacks = {"text": "a", "x": "b"}, {"text": "a"}
    for records, place in (([lacks, has], "line 1"), ([has, lacks], "line 2")):
        path = write(tmp_path / "t.jsonl", records)
        with pytest.raises(DataError) as refused:
            list(reader_of(path, **{key: "x"}).documents())
        says(refused, f"sources.0.{key} = x", place)


def test_what_was_read_is_recorded(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [{"text": "a"}])
    reader = reader_of(path)
    list(reader.documents())
    (source,) = reader.sources
    size = path.stat().st_size
    assert (source.path, source.bytes, source.start, source.stop) == (path.as_posix(), size, 0, size)
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert reader.input_bytes == size


def test_files_that_are_not_utf8_are_left_out_only_where_asked(tmp_path: Path, says: Says) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_bytes(b"good")
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(DataError) as refused:
        list(reader_of(tmp_path, reader="text").documents())
    says(refused, "bad.txt")
    reader = reader_of(tmp_path, reader="text", skip_invalid_utf8=True)
    assert len(list(reader.documents())) == 3
    assert [Path(name).name for name in reader.skipped] == ["bad.txt"]
    assert len(reader.sources) == 3
