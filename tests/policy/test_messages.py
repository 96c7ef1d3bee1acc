"""How messages read is kept beside the tests, and a test that is told another one fails."""

import ast
from pathlib import Path

import pytest

from tests.launched import ROOT
from tests.messages import FILE, read_messages, write_messages

pytest_plugins = ["pytester"]
CONFTEST = "from tests.conftest import pytest_addoption, pytest_configure, says\n"
FIRST = (
    "def test_a(says, tmp_path):\n    says(f'{tmp_path}/x: broken at port 7', 'x', PORT=7)\n    says('the second')\n"
)
SECOND = "def test_b(says):\n    says('other')\n"


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project of one folder of tests."""
    pytester.makeini("[pytest]")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it=FIRST + SECOND)
    return pytester


def ran(project: pytest.Pytester, *arguments: str) -> pytest.ExitCode | int:
    """What a session of pytest in that project ends with."""
    return project.inline_run("--import-mode=importlib", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments).ret


def test_what_was_written_is_read_and_the_same(project: pytest.Pytester) -> None:
    assert ran(project) == pytest.ExitCode.TESTS_FAILED
    assert ran(project, "--rewrite-messages") == pytest.ExitCode.OK
    assert read_messages(project.path / FILE) == {
        ("test_it.py::test_a", 1): "TMP/x: broken at port PORT",
        ("test_it.py::test_a", 2): "the second",
        ("test_it.py::test_b", 1): "other",
    }
    assert ran(project) == pytest.ExitCode.OK


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("broken", "corrupt"),
        ("the second", "a second"),
        ("    says('the second')\n", ""),
        ("    says('the second')\n", "    says('the second')\n    says('the third')\n"),
        ("'x', PORT", "'y', PORT"),
        ("PORT=7", "PORT=8"),
    ],
    ids=["reworded", "reworded below", "one less", "one more", "a fact that is not said", "nothing varies"],
)
def test_another_message_fails(project: pytest.Pytester, old: str, new: str) -> None:
    ran(project, "--rewrite-messages")
    (project.path / "test_it.py").write_text((FIRST + SECOND).replace(old, new))
    assert ran(project) == pytest.ExitCode.TESTS_FAILED


def test_a_test_that_is_skipped_has_not_to_say_all(project: pytest.Pytester) -> None:
    ran(project, "--rewrite-messages")
    skipping = FIRST.replace("    says('the second')", "    import pytest\n    pytest.skip('no second')")
    (project.path / "test_it.py").write_text(skipping + SECOND)
    assert ran(project) == pytest.ExitCode.OK


def test_only_what_no_test_says_any_more_is_dropped(project: pytest.Pytester) -> None:
    ran(project, "--rewrite-messages")
    written = read_messages(project.path / FILE)
    ran(project, "test_it.py::test_b", "--rewrite-messages")
    ran(project, "-k", "test_b", "--rewrite-messages")
    assert read_messages(project.path / FILE) == written
    (project.path / "test_it.py").write_text((FIRST + SECOND).replace("says('the", "assert not says; says('the"))
    assert ran(project, "--rewrite-messages") == pytest.ExitCode.TESTS_FAILED
    assert read_messages(project.path / FILE) == written
    (project.path / "test_it.py").write_text(SECOND)
    ran(project, "--rewrite-messages")
    assert list(read_messages(project.path / FILE)) == [("test_it.py::test_b", 1)]
    (project.path / "test_it.py").rename(project.path / "test_other.py")
    ran(project, "--rewrite-messages")
    assert list(read_messages(project.path / FILE)) == [("test_other.py::test_b", 1)]


def test_any_text_comes_back_as_it_was(tmp_path: Path) -> None:
    messages = {
        ("test_it.py::test_a[ #2 ]", 1): "\n\na\r\n| b\n",
        ("test_it.py::test_a[ #2 ]", 2): "",
        ("t.py::b", 11): "é",
    }
    write_messages(tmp_path / FILE, messages)
    assert read_messages(tmp_path / FILE) == messages


def functions_in(file: Path) -> list[str]:
    return [node.name for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)]


def test_every_message_that_is_kept_is_one_of_a_test() -> None:
    for path in (ROOT / "tests").rglob(FILE):
        kept = {name.partition("[")[0] for name, _ in read_messages(path)}
        tests = {f"{file.name}::{test}" for file in path.parent.glob("test_*.py") for test in functions_in(file)}
        assert kept <= tests
