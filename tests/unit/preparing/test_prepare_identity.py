"""A file of a corpus is what was recorded of it: whatever is done to its name and times, other content is noticed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megaslm.config.recipe import Recipe
from megaslm.dataset import output as output_module
from megaslm.dataset.manifest import read_manifest
from megaslm.errors import DataError, Stopped
from megaslm.inspect.verify import verify
from megaslm.preparing import inputs
from megaslm.preparing.prepare import prepare
from tests.corpus import content, recipe_of


@pytest.fixture
def recipe(corpus: Path, dataset: Path, tmp_path: Path) -> Recipe:
    shutil.copytree(corpus, tmp_path / "corpus")
    # Half of a file that is not UTF-8: of the files that are left out, too, it is known what they were.
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin" / "cafe.txt").write_bytes(b"caf\xe9 caf\xe9")
    sources = [
        {"domain": "noisy", "reader": "jsonl", "paths": [str(tmp_path / "corpus" / "noisy")]},
        {"domain": "noisy", "reader": "text", "paths": [str(tmp_path / "latin")], "skip_invalid_utf8": True},
    ]
    return recipe_of(corpus, sources=sources, tokenizer={"huggingface": str(dataset / "tokenizer")})


def replaced(path: Path, other: bytes) -> None:
    path.with_suffix(".new").write_bytes(other)
    path.with_suffix(".new").replace(path)


def by_an_older_file(path: Path, other: bytes) -> None:
    replaced(path, other)
    os.utime(path, (1_500_000_000, 1_500_000_000))


def by_one_of_the_same_time(path: Path, other: bytes) -> None:
    status = path.stat()
    replaced(path, other)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def in_place_with_the_time_set_back(path: Path, other: bytes) -> None:
    status = path.stat()
    with path.open("r+b") as file:
        file.write(other)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def by_a_link_to_another(path: Path, other: bytes) -> None:
    elsewhere = path.parent.parent / "elsewhere"
    elsewhere.write_bytes(other)
    status = path.stat()
    os.utime(elsewhere, ns=(status.st_atime_ns, status.st_mtime_ns))
    path.unlink()
    path.symlink_to(elsewhere)


WAYS = pytest.mark.parametrize(
    "change", [by_an_older_file, by_one_of_the_same_time, in_place_with_the_time_set_back, by_a_link_to_another]
)


@WAYS
@pytest.mark.parametrize("name", ["corpus/noisy/2.jsonl", "latin/cafe.txt"])
def test_other_content_of_equal_size_is_noticed(
    recipe: Recipe, tmp_path: Path, change: Callable[[Path, bytes], None], name: str
) -> None:
    prepare(recipe, tmp_path / "dataset", workers=1)
    path = tmp_path / name
    change(path, path.read_bytes().replace(b"noisy", b"nasty").replace(b"caf\xe9 caf", b"tea! caf"))
    with pytest.raises(DataError, match=f"{name} "):
        prepare(recipe, tmp_path / "dataset", workers=1)


def test_what_looks_as_it_did_is_not_read_again_and_what_is_the_same_is_taken(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = prepare(recipe, tmp_path / "dataset", workers=1)
    assert [Path(name).name for name in manifest.skipped] == ["cafe.txt"]
    with monkeypatch.context() as patched:
        patched.setattr(inputs, "sha256_of_range", lambda each: pytest.fail(f"{each} was read again"))
        assert prepare(recipe, tmp_path / "dataset", workers=1) == manifest
    # Copied, touched, told nothing about: the content decides.
    replaced(tmp_path / "corpus/noisy/1.jsonl", (tmp_path / "corpus/noisy/1.jsonl").read_bytes())
    (tmp_path / "latin/cafe.txt").touch()
    assert prepare(recipe, tmp_path / "dataset", workers=1) == manifest
    assert verify(tmp_path / "dataset").warnings == ()
    (tmp_path / "dataset/inputs.json").unlink()
    assert prepare(recipe, tmp_path / "dataset", workers=1) == manifest


def test_what_is_noted_of_the_files_can_be_corrupt(recipe: Recipe, tmp_path: Path) -> None:
    prepare(recipe, tmp_path / "dataset", workers=1)
    for corruption in (b"", b"\xff", b"[]", b'{"looks": {"a": 1}}'):
        (tmp_path / "dataset/inputs.json").write_bytes(corruption)
        with pytest.raises(DataError, match=r"inputs\.json"):
            prepare(recipe, tmp_path / "dataset", workers=1)


@pytest.fixture
def interrupted(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset all of whose tasks are done, and nothing else."""
    with monkeypatch.context() as patched:
        patched.setattr(output_module, "write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(Stopped, match="Ctrl-C"):
            prepare(recipe, tmp_path / "dataset", workers=1)
    return tmp_path / "dataset"


def test_other_content_of_equal_size_and_time_begins_unfinished_work_anew(
    recipe: Recipe, interrupted: Path, tmp_path: Path
) -> None:
    path = tmp_path / "corpus/noisy/2.jsonl"
    by_one_of_the_same_time(path, path.read_bytes().replace(b"noisy", b"nasty"))
    prepare(recipe, interrupted, workers=1)
    prepare(recipe, tmp_path / "afresh", workers=1)
    assert content(interrupted) == content(tmp_path / "afresh")


@pytest.mark.parametrize("name", [".prepare/task-00000.json", ".prepare/plan.json"])
@pytest.mark.parametrize("corruption", ["cut", "not UTF-8", "another's"])
def test_notes_that_cannot_be_read_are_named(recipe: Recipe, interrupted: Path, name: str, corruption: str) -> None:
    note = interrupted / name
    whole = note.read_bytes()
    note.write_bytes({"cut": whole[:-20], "not UTF-8": b"\xff" + whole, "another's": b'{"other": 1}'}[corruption])
    with pytest.raises(DataError, match=f"{name} .*remove"):
        prepare(recipe, interrupted, workers=1)
    if "task" in name:
        note.unlink()
        assert prepare(recipe, interrupted, workers=1) == read_manifest(interrupted)


def test_a_tokenizer_that_gives_other_ids_by_now_is_noticed(recipe: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(str(recipe.tokenizer.huggingface), folder)
    recipe = recipe.model_copy(update={"tokenizer": recipe.tokenizer.model_copy(update={"huggingface": str(folder)})})
    made = prepare(recipe, tmp_path / "out", workers=1)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_bytes())
    file.write_text(json.dumps({**tokenizer, "truncation": None}, indent=3))
    assert prepare(recipe, tmp_path / "out", workers=1) == made
    file.write_text(json.dumps({**tokenizer, "normalizer": {"type": "Lowercase"}}))
    with pytest.raises(DataError, match="tokenizer"):
        prepare(recipe, tmp_path / "out", workers=1)
    shutil.rmtree(folder)
    with pytest.raises(DataError, match="tokenizer"):
        prepare(recipe, tmp_path / "out", workers=1)
