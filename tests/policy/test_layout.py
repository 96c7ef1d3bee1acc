"""Names and places of files."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.messages import Says

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_PACKAGES = ("launcher", "data", "configs")
WITH_SCRIPTS = (*WITHOUT_PACKAGES, "benchmarks")
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "misc", "common"}


def misplaced_files(root: Path) -> Iterator[str]:
    """Every file in a place, or of a name, that the house does not have, as `file: rule`."""
    for folder in WITHOUT_PACKAGES:
        for path in sorted((root / folder).rglob("__init__.py")):
            yield f"{path.relative_to(root)}: {folder}/ holds no Python package"
    for folder in WITH_SCRIPTS:
        for path in sorted((root / folder).rglob("*.py")):
            if path.stem in sys.stdlib_module_names:
                yield f"{path.relative_to(root)}: named like the standard library's {path.stem}"
    for path in sorted((root / "megaslm").rglob("*.py")):
        for name in (path.stem, path.parent.name):
            if name in NAMES_THAT_SAY_NOTHING:
                yield f"{path.relative_to(root)}: {name} does not say what it is for"


def test_every_file_is_in_its_place() -> None:
    found = list(misplaced_files(ROOT))
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "file",
    [
        "launcher/__init__.py",
        "data/recipes/__init__.py",
        "benchmarks/profile.py",
        "launcher/signal.py",
        "megaslm/dataset/utils.py",
        "megaslm/utils/text.py",
    ],
)
def test_a_misplaced_file_is_caught(tmp_path: Path, file: str, says: Says) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.touch()
    (found,) = misplaced_files(tmp_path)
    says(found, file)
