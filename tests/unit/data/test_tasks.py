"""Tasks depend on the recipe and its files alone."""

from pathlib import Path

import pytest

from megaslm.config.recipe import Recipe
from megaslm.data.documents import Document, falls_within
from megaslm.data.tasks import files_sha256, kept_documents, plan_tasks, split_of
from megaslm.errors import DataError


def recipe(folder: Path, **changes: object) -> Recipe:
    sources = [
        {"domain": domain, "reader": "text", "paths": [str(folder / place)], **changes.pop(domain, {})}  # type: ignore[dict-item]
        for domain, place in (("a", "first"), ("b", "second"), ("a", "third"))
    ]
    given = {"name": "n", "licence": "MIT", "seq_len": 8, "tokenizer": {"huggingface": "x"}, "sources": sources}
    return Recipe.model_validate({**given, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for place in ("first", "second", "third"):
        (tmp_path / place).mkdir()
        for number, size in enumerate((10, 10, 50, 10)):
            (tmp_path / place / f"{number}.txt").write_text(f"{place} {number} ".ljust(size, "x"))
    return tmp_path


def test_files_are_batched_in_order_up_to_a_size(folder: Path) -> None:
    tasks = plan_tasks(recipe(folder, part_bytes=25))
    assert [[file.path.name for file in task.files] for task in tasks[:3]] == [["0.txt", "1.txt"], ["2.txt"], ["3.txt"]]
    assert [task.number for task in tasks] == list(range(9))
    assert [(task.source.domain, task.part) for task in tasks] == [
        ("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("b", 2), ("a", 3), ("a", 4), ("a", 5),
    ]  # fmt: skip


def test_a_changed_file_changes_the_fingerprint(folder: Path) -> None:
    before = files_sha256(plan_tasks(recipe(folder)))
    assert files_sha256(plan_tasks(recipe(folder))) == before
    (folder / "second" / "1.txt").write_text("other size")
    changed = files_sha256(plan_tasks(recipe(folder)))
    (folder / "second" / "1.txt").write_text("samey size")
    assert len({before, changed, files_sha256(plan_tasks(recipe(folder)))}) == 3


def test_a_share_of_the_documents_is_kept(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("".join(f'{{"text": "document {number}"}}\n' for number in range(2000)))

    def kept(fraction: float) -> set[str]:
        source = {"domain": "a", "reader": "jsonl", "paths": [str(tmp_path / "t.jsonl")], "keep_fraction": fraction}
        (task,) = plan_tasks(recipe(tmp_path, sources=[source]))
        return {document.text for document in kept_documents(task, [])}

    assert len(kept(1.0)) == 2000
    assert 450 < len(kept(0.25)) < 550
    assert kept(0.25) < kept(0.5)


def test_what_is_kept_says_nothing_about_what_is_held_out() -> None:
    keys = [f"document {number}" for number in range(4000)]
    kept = [key for key in keys if falls_within(0.5, "keep", key)]
    assert 0.45 < sum(falls_within(0.5, "heldout-0", key) for key in kept) / len(kept) < 0.55


def test_a_group_stays_together_and_the_seed_divides_otherwise(tmp_path: Path) -> None:
    def heldout(seed: int, texts: str) -> list[int]:
        division = recipe(tmp_path, heldout_fraction=0.3, split_seed=seed)
        documents = [Document(f"{texts} {number}", f"group {number}", "") for number in range(400)]
        return [number for number, each in enumerate(documents) if split_of(each, division) == "heldout"]

    assert heldout(0, "one") == heldout(0, "another")
    assert 80 < len(heldout(0, "one")) < 160
    assert heldout(1, "one") != heldout(0, "one")


def test_files_that_are_not_utf8_are_left_out_only_where_asked(folder: Path) -> None:
    (folder / "second" / "bad.txt").write_bytes(b"\xff")
    skipped: list[str] = []
    with pytest.raises(DataError, match=r"bad.txt is not UTF-8"):
        list(kept_documents(plan_tasks(recipe(folder))[1], skipped))
    task = plan_tasks(recipe(folder, b={"skip_invalid_utf8": True}))[1]
    assert len(list(kept_documents(task, skipped))) == 4
    assert [Path(name).name for name in skipped] == ["bad.txt"]
