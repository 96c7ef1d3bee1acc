"""The standard library as a corpus."""

import inspect
import json
from collections import defaultdict
from pathlib import Path, PurePosixPath

import pytest

from megaslm.corpus import python_stdlib
from megaslm.corpus.documents import InputFile
from megaslm.corpus.files import describe
from megaslm.corpus.python_stdlib import absent_packages, documentation, standard_library_files
from megaslm.errors import DataError
from tests.messages import Says


def inside(file: InputFile) -> str:
    return file.label.split("/", 1)[1]


def stdlib_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("'''x'''", encoding="utf-8")
    monkeypatch.setattr(python_stdlib, "_root", lambda: tmp_path)


def test_nothing_that_was_installed_belongs_to_it() -> None:
    names = [inside(file) for file in standard_library_files("python-source")]
    assert {"argparse.py", "json/decoder.py"} <= set(names)
    assert not [name for name in names if "site-packages" in name or "__pycache__" in name or "_sysconfigdata" in name]
    assert names == [name for name in dict.fromkeys(names) if PurePosixPath(name).suffix != ".whl"]


def test_documentation_comes_from_modules_that_are_not_tests() -> None:
    names = [inside(file) for file in standard_library_files("python-docs")]
    assert "argparse.py" in names
    assert not [name for name in names if name.startswith("test/") or "/test" in name or not name.endswith(".py")]


@pytest.mark.parametrize(
    ("file", "group"),
    [
        ("json/decoder.py", "json"),
        ("argparse.py", "argparse"),
        ("test/test_argparse.py", "argparse"),
        ("test/test_json/test_dump.py", "json"),
        ("test/_test_multiprocessing.py", "multiprocessing"),
        ("test/test_xml_etree.py", "xml"),
        ("test/test_minidom.py", "xml"),
        ("test/test_urllib2.py", "urllib"),
        ("test/decimaltestdata/abs.decTest", "decimal"),
        ("test/test_cprofile.py", "cProfile"),
        ("test/test_dict.py", "dict"),
        ("test/support/__init__.py", "support"),
        ("_pydecimal.py", "decimal"),
        ("_collections_abc.py", "collections"),
        ("xml/dom/minidom.py", "xml"),
        ("unittest/test/test_case.py", "unittest"),
    ],
)
def test_a_files_group_is_the_module_it_is_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, group: str
) -> None:
    stdlib_of(tmp_path, monkeypatch, [file, "json/decoder.py", "xml/dom/minidom.py", "urllib/parse.py", "cProfile.py"])
    groups = {inside(found): found.group for found in standard_library_files("python-source")}
    assert groups[file] == group


def test_a_documented_modules_files_are_all_in_one_group() -> None:
    groups = defaultdict(set)
    for file in standard_library_files("python-source"):
        groups[PurePosixPath(inside(file)).parts[0]].add(file.group)
    assert groups["json"] == {"json"}
    assert groups["email"] == {"email"}


def test_what_a_distribution_leaves_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdlib_of(tmp_path, monkeypatch, ["json/__init__.py", "venv/__init__.py"])
    assert "test" in absent_packages()
    assert "venv" not in absent_packages()


SOURCE = '''"""Module.

    Indented below.
"""
class C:
    """Class text that is longer."""
    async def f(self):
        """Inner text that is longer."""
def g():
    """Inner text that is longer."""
def short(): "no"
x = """Not a docstring at all, though long."""
'''


def test_docstrings_in_order_cleaned_once_and_not_too_short(tmp_path: Path) -> None:
    (tmp_path / "a.py").touch()
    texts = list(documentation(describe(tmp_path / "a.py", "python-3/a.py"), SOURCE, min_characters=10))
    module = inspect.cleandoc("Module.\n\n    Indented below.\n")
    assert texts == [module, "Class text that is longer.", "Inner text that is longer."]


def test_docstrings_are_those_that_inspect_gives() -> None:
    (file,) = (file for file in standard_library_files("python-docs") if inside(file) == "json/__init__.py")
    texts = list(documentation(file, Path(file.path).read_text(encoding="utf-8"), min_characters=200))
    assert texts[0] == inspect.getdoc(json)
    assert inspect.getdoc(json.dumps) in texts


def test_topics_are_documentation() -> None:
    files = [file for file in standard_library_files("python-docs") if inside(file) == "pydoc_data/topics.py"]
    if not files:
        pytest.skip("this Python has no pydoc_data")
    from pydoc_data.topics import topics

    texts = list(documentation(files[0], Path(files[0].path).read_text(encoding="utf-8"), min_characters=0))
    assert texts == list(topics.values())


def test_what_is_not_python_is_named(tmp_path: Path, says: Says) -> None:
    (tmp_path / "a.py").touch()
    with pytest.raises(DataError) as refused:
        list(documentation(describe(tmp_path / "a.py", "a.py"), "def", min_characters=0))
    says(refused, "a.py")
