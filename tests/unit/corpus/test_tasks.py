"""Tasks depend on the recipe and its files alone."""

from pathlib import Path

import pytest

from megaslm.config.load import load
from megaslm.config.recipe import Recipe
from megaslm.corpus.documents import Document, falls_within
from megaslm.corpus.tasks import files_sha256, plan_tasks, recipe_sha256, split_of

ROOT = Path(__file__).resolve().parents[3]


def recipe(folder: Path, **changes: object) -> Recipe:
    sources = [
        {"domain": domain, "reader": "text", "paths": [str(folder / place)], **changes.pop(domain, {})}  # type: ignore[dict-item]
        for domain, place in (("a", "first"), ("b", "second"), ("a", "third"))
    ]
    given = {"name": "n", "licence": "MIT", "seq_len": 8, "tokenizer": {"huggingface": "x"}, "sources": sources}
    return Recipe.model_validate({**given, **changes})


def test_a_recipe_is_the_same_as_in_builds_that_lack_a_key() -> None:
    """The fingerprint `before` was made by a build whose recipes had no `bos`."""
    source = {"domain": "web", "reader": "jsonl", "paths": ["corpora/web"]}
    given = {
        "name": "before",
        "licence": "CC0-1.0",
        "seq_len": 2048,
        "tokenizer": {"huggingface": "models/tokenizer"},
        "sources": [{**source, "filters": [{"name": "length", "min_characters": 200}]}],
    }
    before = "f7c74e6e8160836a0dd488899e6222e0d12c61a0087623161f07ecf347a92031"
    assert recipe_sha256(Recipe.model_validate(given)) == before
    assert recipe_sha256(Recipe.model_validate({**given, "bos": "none"})) == before
    others = {recipe_sha256(Recipe.model_validate({**given, "bos": bos})) for bos in ("document", "row")}
    assert len(others - {before}) == 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for place in ("first", "second", "third"):
        (tmp_path / place).mkdir()
        for number, size in enumerate((10, 10, 50, 10)):
            (tmp_path / place / f"{number}.txt").write_text(f"{place} {number} ".ljust(size, "x"))
    return tmp_path


def test_files_are_batched_in_order_up_to_a_size(folder: Path) -> None:
    tasks = plan_tasks(recipe(folder, part_bytes=25))
    names = [[Path(file_range.file.path).name for file_range in task.ranges] for task in tasks[:3]]
    assert names == [["0.txt", "1.txt"], ["2.txt"], ["3.txt"]]
    assert [task.number for task in tasks] == list(range(9))
    assert [(task.source.domain, task.source_number) for task in tasks] == [("a", 0)] * 3 + [("b", 1)] * 3 + [
        ("a", 2)
    ] * 3


def test_large_files_are_divided_where_they_can_be(tmp_path: Path) -> None:
    for name, size in (("1.jsonl", 250), ("2.jsonl", 100), ("3.jsonl.gz", 250), ("4.jsonl", 0)):
        (tmp_path / name).write_bytes(b"x" * size)
    source = {"domain": "a", "reader": "jsonl", "paths": [str(tmp_path)]}
    tasks = plan_tasks(recipe(tmp_path, sources=[source], part_bytes=100))
    ranges = [
        [(Path(file_range.file.path).name, file_range.start, file_range.stop) for file_range in task.ranges]
        for task in tasks
    ]
    assert ranges == [
        [("1.jsonl", 0, 83)],
        [("1.jsonl", 83, 166)],
        [("1.jsonl", 166, 250)],
        [("2.jsonl", 0, 100)],
        [("3.jsonl.gz", 0, 250)],
        [("4.jsonl", 0, 0)],
    ]
    assert [task.input_bytes for task in tasks] == [83, 83, 84, 100, 250, 0]


def test_the_fingerprint_of_a_recipe_is_that_of_earlier_versions() -> None:
    """Literal, from before sources had `hub`, `template` and `messages_field`."""
    demo = load(Recipe, ROOT / "data" / "demo.yaml").value
    assert recipe_sha256(demo) == "2a9f5fa5981e84d0103319109fdcd7fc1304f1f9dd4c8d49b77933c4a8481ef3"


def test_every_later_setting_changes_the_fingerprint(folder: Path) -> None:
    source = {"domain": "a", "reader": "jsonl", "paths": ["x"]}
    hub = {"repo": "a/b", "folder": "x"}
    settings = [{}, {"hub": hub}, {"hub": {**hub, "revision": "v2"}}, {"template": "{a}"}, {"messages_field": "a"}]
    prints = {recipe_sha256(recipe(folder, sources=[{**source, **added}])) for added in settings}
    assert len(prints) == len(settings)


def test_a_changed_file_changes_the_fingerprint(folder: Path) -> None:
    before = files_sha256(plan_tasks(recipe(folder)))
    assert files_sha256(plan_tasks(recipe(folder))) == before
    (folder / "second" / "1.txt").write_text("other size")
    changed = files_sha256(plan_tasks(recipe(folder)))
    (folder / "second" / "1.txt").write_text("samey size")
    assert len({before, changed, files_sha256(plan_tasks(recipe(folder)))}) == 3


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
