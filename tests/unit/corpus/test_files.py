"""Which files a source means."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from megaslm.config.recipe import Source
from megaslm.corpus.files import find_files
from megaslm.errors import ConfigError, DataError
from tests.messages import Says


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b/2.jsonl", "b/10.jsonl.gz", "a/x.jsonl", "a/notes.txt", "a/vendor/y.py", "a/z.py", "single.jsonl"):
        path = tmp_path / "text" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)


def found(reader: str, *paths: str, **settings: object) -> list[str]:
    source = Source.model_validate({"domain": "d", "reader": reader, "paths": paths, "licence": "none", **settings})
    return [file.label.removeprefix("text/") for file in find_files(source)]


def test_a_folder_gives_the_readers_files_sorted() -> None:
    assert found("jsonl", "text") == ["a/x.jsonl", "b/10.jsonl.gz", "b/2.jsonl", "single.jsonl"]
    assert found("text", "text") == ["a/notes.txt"]


def test_a_glob_crosses_folders() -> None:
    assert found("jsonl", "text/**/*.jsonl") == ["a/x.jsonl", "b/2.jsonl", "single.jsonl"]
    assert found("jsonl", "text/[b]") == ["b/10.jsonl.gz", "b/2.jsonl"]


def test_a_name_with_brackets_is_itself_where_it_is_there() -> None:
    for name in ("v[1]/a.jsonl", "v1/b.jsonl", "w/[x].jsonl", "w/x.jsonl", "w/*", "w/y?.jsonl", "w/yz.jsonl"):
        Path("text", name).parent.mkdir(exist_ok=True)
        Path("text", name).touch()
    assert found("jsonl", "text/v[1]/*.jsonl") == found("jsonl", "text/v[1]") == ["v[1]/a.jsonl"]
    assert found("jsonl", "text/v[12]/*.jsonl") == ["v1/b.jsonl"]
    assert found("jsonl", "text/w/[x].jsonl") == ["w/[x].jsonl"]
    assert found("jsonl", "text/w/y?.jsonl") == ["w/y?.jsonl", "w/yz.jsonl"]
    assert len(found("jsonl", "text/w/*")) == 5


@pytest.mark.parametrize("path", ["~nobody-of-that-name/a.jsonl", "~nobody-of-that-name"])
def test_a_home_that_nobody_has_is_a_mistake(path: str) -> None:
    with pytest.raises(ConfigError, match="~nobody-of-that-name"):
        found("jsonl", path)


@pytest.mark.parametrize("paths", [[""], ["text", " "]])
def test_an_empty_path_is_not_the_folder_one_is_in(paths: list[str]) -> None:
    with pytest.raises(ValidationError, match="path"):
        found("jsonl", *paths)


def test_paths_keep_their_order_and_a_file_comes_once() -> None:
    assert found("jsonl", "text/single.jsonl", "text/b", "text") == [
        "single.jsonl", "b/10.jsonl.gz", "b/2.jsonl", "a/x.jsonl",
    ]  # fmt: skip


def test_a_named_file_needs_no_usual_suffix() -> None:
    assert found("jsonl", "text/a/notes.txt") == ["a/notes.txt"]


def test_an_absolute_path(tmp_path: Path) -> None:
    assert found("jsonl", f"{tmp_path}/text/b/*.jsonl") == [f"{tmp_path}/text/b/2.jsonl"]


def test_a_tree_is_narrowed_by_suffix_and_exclusion() -> None:
    assert found("tree", "text/a") == ["a/notes.txt", "a/vendor/y.py", "a/x.jsonl", "a/z.py"]
    assert found("tree", "text/a", suffixes=[".py"]) == ["a/vendor/y.py", "a/z.py"]
    assert found("tree", "text/a", suffixes=[".py"], exclude=["vendor/*"]) == ["a/z.py"]


def test_a_path_without_files_is_named(says: Says) -> None:
    with pytest.raises(DataError) as refused:
        found("jsonl", "text/a", "text/*.json")
    says(refused, "'text/*.json'")
    with pytest.raises(DataError) as refused:
        found("tree", "nowhere")
    says(refused, "'nowhere'")
