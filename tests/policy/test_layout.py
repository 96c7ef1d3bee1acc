"""Names and places of files."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from megaslm.config.schema import Architecture
from megaslm.model.families import FAMILIES
from tests.messages import Says

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_PACKAGES = ("launcher", "data", "configs")
WITH_SCRIPTS = (*WITHOUT_PACKAGES, "benchmarks")
STARTERS = {"subprocess", "multiprocessing", "tests.forks", "tests.forked_cli", "tests.rank_pool", "tests.s3"}
MOST_LINES = 400
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


def starters_of_processes(root: Path) -> Iterator[str]:
    """Every file of unit tests that starts a process itself, as `file: what it imports for that`."""
    for path in sorted((root / "tests" / "unit").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in STARTERS.intersection(names):
                yield f"{path.relative_to(root)}: {name}"


def test_unit_tests_start_no_process(tmp_path: Path) -> None:
    assert list(starters_of_processes(ROOT)) == []
    planted = tmp_path / "tests" / "unit" / "test_a.py"
    planted.parent.mkdir(parents=True)
    planted.write_text("import subprocess\nfrom tests.forks import fork\n", encoding="utf-8")
    assert len(list(starters_of_processes(tmp_path))) == 2


def test_no_file_is_too_long_to_be_read_at_once() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "megaslm").rglob("*.py")}
    assert {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > MOST_LINES} == {}


def files_that_name_a_family(root: Path) -> Iterator[str]:
    """Every file but the table of families that names one of them, as `file: the family`."""
    drawn = get_args(Architecture.model_fields["family"].annotation)
    for path in sorted((root / "megaslm").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = node.value if isinstance(node, ast.Constant) else None
            if named in FAMILIES and named not in drawn and path.name != "families.py":
                yield f"{path.relative_to(root)}: {named}"


def test_a_family_is_described_in_one_place(tmp_path: Path) -> None:
    """Except for what `model.from_scratch` draws, which a user names."""
    assert list(files_that_name_a_family(ROOT)) == []
    (tmp_path / "megaslm").mkdir()
    (tmp_path / "megaslm/load.py").write_text('if config.model_type == "granite": pass\n', encoding="utf-8")
    assert list(files_that_name_a_family(tmp_path)) == ["megaslm/load.py: granite"]


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
