"""What the documents name is there."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.policy.import_rules import LAYERS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "STYLE")),
    *sorted((ROOT / "docs").glob("*.md")),
]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
_PATH = re.compile(r"`((?:megaslm|launcher|configs|tests|benchmarks|docs)/[^`\s]*)`|\]\(((?!http)[^)#\s]+)\)")
_SYMBOL = re.compile(r"`([A-Z]\w+|[a-z]+_\w+)(?:\.(\w+))?(?:\(\))?`")


def missing_files(document: Path, root: Path) -> Iterator[str]:
    """Files and folders that a document names and the tree lacks; a link is relative to the document."""
    for named, linked in _PATH.findall(document.read_text(encoding="utf-8")):
        found = root.glob(named.rstrip("/")) if named else document.parent.glob(linked)
        if not any(found):
            yield f"{document.relative_to(root)}: {named or linked}"


def missing_symbols(document: Path, root: Path) -> Iterator[str]:
    """Classes and functions that a document names and the package lacks."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in (root / "megaslm").rglob("*.py"))
    for names in set(_SYMBOL.findall(document.read_text(encoding="utf-8"))):
        for name in filter(None, names):
            if not re.search(rf"\b(class|def) {name}\b|^    {name}: |^{name}\b", code, re.MULTILINE):
                yield f"{document.relative_to(root)}: {name}"


def unnamed_places(architecture: Path, root: Path) -> Iterator[str]:
    """Files in folders of the package that have no line in the table: neither they nor a folder around them."""
    text = architecture.read_text(encoding="utf-8")
    files = [path.relative_to(root) for path in (root / "megaslm").glob("*/**/*.py") if path.name != "__init__.py"]
    for file in sorted(files):
        if not any(f"| `{place}` |" in text for place in (file, *file.parents)):
            yield str(file)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_files_that_are_there(document: Path) -> None:
    assert list(missing_files(document, ROOT)) == []


def test_the_architecture_is_that_of_the_tree() -> None:
    assert list(unnamed_places(ARCHITECTURE, ROOT)) == []
    assert list(missing_symbols(ARCHITECTURE, ROOT)) == []


def test_the_folders_stand_in_the_order_of_imports() -> None:
    table = ARCHITECTURE.read_text(encoding="utf-8").partition("## The folders")[2].partition("Each folder imports")[0]
    shown = re.findall(r"^\| `megaslm/(\w+)(?:\.py)?` \|", table, re.MULTILINE)
    above = [layer for layers in LAYERS if len(layers) == 1 for layer in layers]
    assert [folder for folder in shown if folder in above] == [layer for layer in above if layer in shown]
    assert set(shown) >= {path.name for path in (ROOT / "megaslm").iterdir() if (path / "__init__.py").is_file()}


def test_the_picture_has_one_box_for_each_folder() -> None:
    picture = ElementTree.parse(ROOT / "docs" / "data-flow.svg").getroot()
    groups = [group for group in picture.iter("{http://www.w3.org/2000/svg}g") if group.get("data-folder")]
    boxes = sorted(group.get("data-folder", "") for group in groups)
    assert boxes == sorted(f"megaslm/{path.parent.name}" for path in (ROOT / "megaslm").glob("*/__init__.py"))
    # The name that a reader sees is the folder's.
    assert boxes == sorted(f"megaslm/{group[1].text}" for group in groups)


def test_what_is_missing_is_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "megaslm" / "slm").mkdir(parents=True)
    (tmp_path / "megaslm" / "slm" / "keys.py").write_text("def row_of() -> None: ...\n")
    document = tmp_path / "docs" / "a.md"
    document.write_text("`megaslm/slm/keys.py` `megaslm/slm/gone.py` [a](a.md) [b](b.md) `row_of` `no_such` `Gone`")
    assert list(missing_files(document, tmp_path)) == ["docs/a.md: megaslm/slm/gone.py", "docs/a.md: b.md"]
    assert sorted(missing_symbols(document, tmp_path)) == ["docs/a.md: Gone", "docs/a.md: no_such"]
    assert list(unnamed_places(document, tmp_path)) == ["megaslm/slm/keys.py"]
