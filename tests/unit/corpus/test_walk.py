"""Whatever lies in a folder is read once, counted as passed over, or refused by name; links are followed."""

import os
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaslm.config.recipe import Source
from megaslm.corpus.files import find_files
from megaslm.errors import DataError
from tests.messages import Says

HIDDEN, OTHER_NAMES = "hidden, or kept by other programs", "other names of what is read"


@pytest.fixture(autouse=True)
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return fill(tmp_path / "corpus", "a.jsonl", "sub/b.jsonl")


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def found(*paths: str, reader: str = "jsonl", **more: object) -> tuple[list[str], dict[str, int]]:
    """The files below the folder `corpus`, and what was passed over."""
    source = Source.model_validate({"domain": "d", "reader": reader, "paths": paths, "licence": "none", **more})
    passed_over: Counter[str] = Counter()
    return [file.label.removeprefix("corpus/") for file in find_files(source, passed_over)], dict(passed_over)


EVERY_WAY = pytest.mark.parametrize("path", ["corpus", "corpus/**/*.jsonl", "corpus/**", "cor*"])


@EVERY_WAY
def test_links_are_followed_by_every_kind_of_path(corpus: Path, path: str) -> None:
    fill(corpus.parent / "disk", "x.jsonl", "deep/er/y.jsonl")
    (corpus / "linked").symlink_to(corpus.parent / "disk")
    (corpus / "to-file.jsonl").symlink_to("../disk/deep/er/y.jsonl")
    (corpus.parent / "disk" / "deep" / "further").symlink_to(fill(corpus.parent / "third", "z.jsonl"))
    files, passed_over = found(path)
    assert files == ["a.jsonl", "linked/deep/further/z.jsonl", "linked/x.jsonl", "sub/b.jsonl", "to-file.jsonl"]
    assert passed_over == {OTHER_NAMES: 1}


@EVERY_WAY
def test_circles_end_and_a_file_of_several_names_is_read_by_its_own(corpus: Path, path: str) -> None:
    (corpus / "sub" / "up").symlink_to("..")
    (corpus / "0-first").symlink_to("sub")
    (corpus / "0-first.jsonl").symlink_to("sub/b.jsonl")
    (corpus / "sub" / "self").symlink_to(".")
    files, passed_over = found(path)
    assert files == ["a.jsonl", "sub/b.jsonl"]
    assert set(passed_over) == {OTHER_NAMES}


def test_a_file_that_two_paths_name_is_read_once(corpus: Path) -> None:
    (corpus / "again.jsonl").symlink_to("a.jsonl")
    assert found("corpus/again.jsonl", "corpus/a.jsonl", f"{corpus}/a.jsonl", "corpus/sub/../sub") == (
        ["again.jsonl", "sub/../sub/b.jsonl"], {},
    )  # fmt: skip


def test_a_folder_that_two_parts_of_a_glob_lead_to_is_entered_for_both(corpus: Path) -> None:
    fill(corpus, "x/1.dat", "x/keep/2.jsonl")
    (corpus / "keep-x").symlink_to("x")
    assert found("corpus/**/keep*/*") == (["keep-x/1.dat", "x/keep/2.jsonl"], {OTHER_NAMES: 1})


@pytest.mark.parametrize("name", ["gone.jsonl", "gone", "gone.v2", "circle"])
@EVERY_WAY
def test_a_link_that_leads_nowhere_is_named(corpus: Path, path: str, name: str) -> None:
    (corpus / "sub" / name).symlink_to("circle" if name == "circle" else "/no/such/disk")
    if path.endswith("jsonl") and name == "gone":
        # A folder may be behind it, in which the glob continues.
        assert not (corpus / "sub" / name).exists()
    with pytest.raises(DataError, match=rf"corpus/sub/{name} .*(circle|/no/such/disk)"):
        found(path)
    assert found(path, exclude=[f"*{name}"])[0] == ["a.jsonl", "sub/b.jsonl"]


def test_where_a_link_leads_is_told(corpus: Path, says: Says) -> None:
    (corpus / "gone").symlink_to("/no/such/disk")
    with pytest.raises(DataError) as refused:
        found("corpus")
    says(refused, "corpus/gone", "/no/such/disk")


def test_a_link_that_leads_nowhere_and_that_no_glob_means_is_none_of_its_business(corpus: Path) -> None:
    (corpus / "gone.md").symlink_to("nowhere")
    assert found("corpus/*.jsonl") == (["a.jsonl"], {})


def test_what_belongs_to_other_programs_is_passed_over(corpus: Path) -> None:
    fill(corpus, ".git/x.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "._a.jsonl", "__MACOSX/a.jsonl")
    fill(corpus, "_temporary/0/part-0.jsonl", "sub/.Trash-0/files/b.jsonl", "sub/.b.jsonl.crc", "_delta_log/0.jsonl")
    assert found("corpus") == found("corpus/**/*.jsonl") == (["a.jsonl", "sub/b.jsonl"], {HIDDEN: 8})
    assert found("corpus/_temporary/**/*.jsonl")[0] == ["_temporary/0/part-0.jsonl"]
    assert found("corpus/.git/*")[0] == [".git/x.jsonl"]
    assert found("corpus/.*/*.jsonl")[0] == [".git/x.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl"]


def test_a_tree_is_read_without_backups_and_hidden_files(corpus: Path) -> None:
    fill(corpus, "m.py", "m.py~", ".gitignore", "__init__.py", "_private/m.R", "Makefile")
    files, passed_over = found("corpus", reader="tree")
    assert files == ["Makefile", "__init__.py", "_private/m.R", "a.jsonl", "m.py", "sub/b.jsonl"]
    assert passed_over == {HIDDEN: 2}


def test_other_endings_are_counted_and_may_be_named(corpus: Path, says: Says) -> None:
    fill(corpus, "c.json.gz", "d.json", "D.JSON", "README.md", "_SUCCESS", "part-00001", "e.ndjson")
    expected = {"*.json.gz": 1, "*.json": 2, "*.md": 1, "without an ending": 2, "*.ndjson": 1}
    assert found("corpus") == (["a.jsonl", "sub/b.jsonl"], expected)
    assert found("corpus/*.json.gz", "corpus/part-*") == (["c.json.gz", "part-00001"], {})
    with pytest.raises(DataError) as refused:
        found("corpus", exclude=["*.jsonl"])
    says(refused, "'corpus'", "*.json (2)")


def test_kinds_of_endings_are_counted_up_to_a_number(corpus: Path) -> None:
    fill(corpus, *(f"x.q{number}" for number in range(50)))
    passed_over = found("corpus")[1]
    assert len(passed_over) == 31
    assert sum(passed_over.values()) == 50


@pytest.mark.parametrize("reader_and_name", [
    ("jsonl", "x.JSONL"), ("jsonl", "x.Jsonl.GZ"), ("text", "x.TXT"), ("text", "x.txt.gz"), ("text", "x.txt.zst"),
    ("parquet", "X.PARQUET"),
])  # fmt: skip
def test_usual_endings_are_read_in_upper_case_and_packed(corpus: Path, reader_and_name: tuple[str, str]) -> None:
    reader, name = reader_and_name
    fill(corpus / "own", name)
    assert found("corpus/own", reader=reader) == ([f"own/{name}"], {})


def test_endings_of_the_recipe_are_taken_as_they_are(corpus: Path) -> None:
    fill(corpus, "x.C", "x.c")
    assert found("corpus", reader="tree", suffixes=[".C"])[0] == ["x.C"]


@pytest.mark.parametrize("name", ["x.jsonl.bz2", "x.jsonl.xz", "X.JSONL.LZ4", "x.jsonl.gz.zip", "x.jsonl.zstd"])
def test_text_in_a_form_that_is_not_read_is_refused(corpus: Path, name: str) -> None:
    fill(corpus / "sub", name)
    with pytest.raises(DataError, match=rf"corpus/sub/{name}"):
        found("corpus")
    assert found("corpus", exclude=[f"sub/{name}"])[0] == ["a.jsonl", "sub/b.jsonl"]


def test_pipes_and_sockets_are_never_opened(corpus: Path) -> None:
    os.mkfifo(corpus / "pipe.jsonl")
    (corpus / "linked.jsonl").symlink_to("pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("corpus/socket.jsonl")
        assert found("corpus") == (["a.jsonl", "sub/b.jsonl"], {"sockets, pipes and devices": 3})
    with pytest.raises(DataError, match=r"corpus/pipe\.jsonl"):
        found("corpus/pipe.jsonl")


def test_a_name_that_is_not_utf8_is_shown_and_refused_only_where_the_file_is_read(corpus: Path) -> None:
    Path(os.fsdecode(os.fsencode(corpus) + b"/caf\xe9.jsonl")).touch()
    with pytest.raises(DataError, match=r"caf\\xe9\.jsonl"):
        found("corpus")
    assert found("corpus", exclude=["caf*"])[0] == ["a.jsonl", "sub/b.jsonl"]


def test_two_stars_inside_a_name_are_refused(corpus: Path) -> None:
    with pytest.raises(DataError, match=r"a\*\*"):
        found("corpus/a**")


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder of a user whose permissions count, unlike root's."""
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
        folder, me = Path(temporary), os.geteuid()
        if me == 0:
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(me)
            for path in (folder, *folder.iterdir()):
                path.chmod(0o700)


def test_a_folder_that_cannot_be_listed_is_named(as_nobody: Path) -> None:
    fill(as_nobody, "open/a.jsonl", "closed/b.jsonl")
    (as_nobody / "closed").chmod(0)
    for path in (as_nobody, f"{as_nobody}/**/*.jsonl", as_nobody / "closed", f"{as_nobody}/closed/*.jsonl"):
        with pytest.raises(DataError, match=rf"{as_nobody}/closed"):
            found(str(path))
    with pytest.raises(DataError, match=rf"{as_nobody}/closed/b\.jsonl"):
        found(f"{as_nobody}/closed/b.jsonl")
    assert found(str(as_nobody), exclude=["closed/*"])[0] == [f"{as_nobody}/open/a.jsonl"]


NAMES = st.sampled_from(["a", "b", "c.jsonl", "d.jsonl.gz", "e.txt", ".h", "_temporary", "f.JSONL"])
PLACES = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
TREES = st.lists(st.tuples(PLACES, st.one_of(st.none(), PLACES, st.just("."))), max_size=9)


def grow(root: Path, tree: list[tuple[str, str | None]]) -> None:
    """Files and, where a target is named, links to it; what has no place any more is left out."""
    root.mkdir()
    for name, target in tree:
        path = root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if target is None:
                path.touch(exist_ok=False)
            elif (root / target).exists():
                path.symlink_to(root / target)
        except (OSError, RuntimeError):
            continue


def is_wanted(path: str) -> bool:
    names = path.split("/")
    is_aside = any(name.startswith(".") or name == "_temporary" for name in names)
    return not is_aside and names[-1].lower().endswith((".jsonl", ".jsonl.gz"))


def by_walking(root: Path) -> set[str]:
    """Every file that os.walk finds, links followed, by its path without links."""
    files, entered = set(), set()
    for folder, folders, names in os.walk(root, followlinks=True):
        if os.path.realpath(folder) in entered:
            folders.clear()
        entered.add(os.path.realpath(folder))
        folders[:] = [name for name in folders if not name.startswith(".") and name != "_temporary"]
        files |= {os.path.realpath(Path(folder) / name) for name in names if is_wanted(name)}
    return files


@settings(max_examples=100, deadline=None)
@given(TREES)
def test_it_finds_what_os_walk_finds(tree: list[tuple[str, str | None]]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        grow(root := Path(temporary) / "corpus", tree)
        expected = by_walking(root)
        for path in (str(root), f"{root}/**", f"{temporary}/*"):
            files = as_far_as_there_are_any(lambda path=path: found(path)[0])
            assert len(files) == len(set(files))
            assert files == sorted(files, key=Path)
            assert {os.path.realpath(name) for name in files} == expected


@settings(max_examples=60, deadline=None)
@given(TREES, st.sampled_from(["", "/*", "/**/*.jsonl", "/*/*", "/[ab]/**", "/**/b/*", "/.*/**", "/?.jsonl"]))
def test_a_store_is_walked_as_a_disk_is(tree: list[tuple[str, str | None]], glob: str) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        grow(root := Path(temporary) / "corpus", [(name, None) for name, _ in tree])
        store = fsspec.filesystem("memory")
        store.store.clear()
        for path in root.rglob("*"):
            if path.is_file():
                store.pipe_file(f"/bucket/{path.relative_to(root).as_posix()}", b"")
        here = as_far_as_there_are_any(lambda: found(f"{root}{glob}"))
        there = as_far_as_there_are_any(lambda: found(f"memory://bucket{glob}"))
        assert (
            [name.removeprefix(f"{root}/") for name in here[0]]
            == [name.removeprefix("memory://bucket/") for name in there[0]]
            if here and there
            else here == there
        )
        # A hidden folder counts once on a disk, a store has only its files.
        if here:
            counts = [{why: count for why, count in each[1].items() if why != HIDDEN} for each in (here, there)]
            assert counts[0] == counts[1]


def as_far_as_there_are_any(find: Callable[[], list[str] | tuple[list[str], dict[str, int]]]) -> list:  # type: ignore[type-arg]
    """What is found; nothing where that is refused because there is nothing."""
    try:
        return list(find())
    except DataError:
        return []
