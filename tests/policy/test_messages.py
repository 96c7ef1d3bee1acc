"""How messages read is kept beside the tests, and a test that is told another one fails."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launched import ROOT
from tests.messages import FILE, line_with, lines_with, read_messages, write_messages

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


def test_numbers_that_vary_are_not_kept(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it="def test_a(says):\n    says.without_numbers('step 3 · 1,024.5 s at port 7', 'step 3', PORT=7)\n"
    )
    assert ran(project, "--rewrite-messages") == pytest.ExitCode.OK
    assert read_messages(project.path / FILE) == {("test_it.py::test_a", 1): "step N · N s at port PORT"}


def test_a_line_is_found_by_its_facts() -> None:
    output = "a 1\nb 1\na 1\na 2\n"
    assert lines_with(output, "a") == ["a 1", "a 2"]
    assert line_with(output, "a", 1) == "a 1"
    for facts in (("a",), ("c",)):
        with pytest.raises(pytest.fail.Exception):
            line_with(output, *facts)


# A fact is a name, a path or a number with its unit; from so many words on a text is English. What `raises` matches is
# all of an error, of which one word is enough to tell the field.
LEAST_WORDS = {"match": 2, "in": 3}
_WORDS = re.compile(r"(?<![\w.`/'-])[A-Za-z]{2,}(?: [a-z]+)+(?![\w/='])")


def words_in(expression: ast.expr) -> int:
    """How many words follow one another in a text of an expression, at most."""
    texts = [node.value for node in ast.walk(expression) if isinstance(node, ast.Constant) and type(node.value) is str]
    return max((len(run.split()) for text in texts for run in _WORDS.findall(text)), default=0)


def english_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines that compare a text with English: `raises(…, match=…)` and `… in …`."""
    for node in ast.walk(tree):
        compared: list[tuple[str, ast.expr]] = []
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("pytest.raises", "pytest.warns"):
            compared = [("match", keyword.value) for keyword in node.keywords if keyword.arg == "match"]
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            compared = [("in", node.left)]
        yield from ((node.lineno, how) for how, text in compared if words_in(text) >= LEAST_WORDS[how])


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('pytest.raises(DataError, match="no such file")', ["match"]),
        ('pytest.raises(DataError, match=rf"{path}: .* is missing")', ["match"]),
        ('pytest.raises(DataError, match=r"train\\.lr = 1, one of \\d")', ["match"]),
        ('pytest.raises(DataError, match="/no/such file.yaml")', []),
        ("pytest.raises(DataError, match=re.escape(path))", []),
        ('assert f"{path}: was made by another run" in said', ["in"]),
        ('assert "another job is training" not in said', ["in"]),
        ('assert "step 2 of 8" in said', []),
        ('assert "--resume" not in said', []),
        ('assert "NCCL_DEBUG" in said and TOLD in said', []),
    ],
)
def test_english_is_told_from_facts(line: str, found: list[str]) -> None:
    assert [how for _, how in english_in(ast.parse(line))] == found


def test_no_test_compares_with_an_english_sentence() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for line, _ in english_in(ast.parse(path.read_text("utf-8")))
    ]
    assert found == [], "`says` compares a message with messages.txt; a test asserts its facts"
