"""The wording of messages, kept beside the tests in `messages.txt`: one command writes it anew, and its diff is read.

A test holds in code what is no English: the type of the mistake, the setting, the file, the number.
"""

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

FILE = "messages.txt"
_VARYING = {
    r"\b[0-9a-f]{12,64}\b": "CHECKSUM",
    r"(?<=SHARED/)([^/\s]*?)\d+\b": r"\1",  # the number of a folder of `tmp_path_factory`
    r"(?<=errors\.pydantic\.dev/)[\d.]+": "VERSION",
}
Key = tuple[str, int]  # a test with its parameters, and which of its messages


class Messages:
    """What tests of this session said, compared with what is kept or, when asked to, kept anew."""

    NAME = "messages"

    def __init__(self, config: pytest.Config) -> None:
        self.rewrites: bool = config.getoption("--rewrite-messages")
        self._root = config.rootpath
        self._arguments = [str(argument) for argument in config.args]
        self._kept: dict[Path, dict[Key, str]] = {}
        self._said: dict[Path, dict[Key, str]] = {}
        self._collected: dict[Path, set[str]] = {}
        self._passed: set[tuple[Path, str]] = set()

    def kept(self, folder: Path) -> dict[Key, str]:
        """What is kept for the tests of a folder."""
        if folder not in self._kept:
            self._kept[folder] = read_messages(folder / FILE)
        return self._kept[folder]

    def say(self, item: pytest.Item, number: int, text: str) -> None:
        """Compare one message of a test, or keep it."""
        __tracebackhide__ = True
        folder, key = item.path.parent, (_name(item), number)
        if self.rewrites:
            self._said.setdefault(folder, {})[key] = text
            return
        kept = self.kept(folder).get(key)
        how = f"`pytest --rewrite-messages {item.path.relative_to(self._root)}` writes it anew"
        if kept is None:
            pytest.fail(f"{folder / FILE} has no message {number} of {key[0]}; {how}. It would be:\n{text}")
        if kept != text:
            lines = difflib.ndiff(kept.split("\n"), text.split("\n"))
            pytest.fail(
                f"message {number} of {key[0]} does not read as {folder / FILE} has it; {how}:\n" + "\n".join(lines)
            )

    def check_count(self, item: pytest.Item, said: int) -> None:
        """A test that passed has said all that is kept of it."""
        kept = sum(name == _name(item) for name, _ in self.kept(item.path.parent))
        passed = (item.path, _name(item)) in self._passed
        if passed and not self.rewrites and kept != said:
            pytest.fail(f"{_name(item)} said {said} messages; {item.path.parent / FILE} has {kept} of it")

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note all tests that there are, before -k and -m leave some of them out."""
        for item in items:
            self._collected.setdefault(item.path, set()).add(_name(item))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what passed: what a test that failed or was skipped has not said stays as it was."""
        if report.when == "call" and report.passed:
            path, _, name = report.nodeid.partition("::")
            self._passed.add((self._root / path, f"{Path(path).name}::{name}"))

    def pytest_sessionfinish(self) -> None:
        """Write what was said; drop what tests that passed, or are no more, do not say."""
        if not self.rewrites:
            return
        for folder in {path.parent for path in self._collected}:
            kept = {key: text for key, text in self.kept(folder).items() if not self._is_stale(folder, key)}
            write_messages(folder / FILE, kept | self._said.get(folder, {}))

    def _is_stale(self, folder: Path, key: Key) -> bool:
        path = folder / key[0].partition("::")[0]
        if key[0] in self._collected.get(path, set()):
            return (path, key[0]) in self._passed
        collected_in_part = any(path.name in argument and "::" in argument for argument in self._arguments)
        return not path.exists() or (path in self._collected and not collected_in_part)


class Says:
    """Compares what one test is told, message by message."""

    def __init__(self, messages: Messages, item: pytest.Item, folders: dict[str, str]) -> None:
        self._messages = messages
        self._item = item
        self._folders = folders
        self.count = 0

    def __call__(self, told: str | BaseException | pytest.ExceptionInfo, *facts: object, **varying: object) -> None:
        """Compare a message, which must hold the facts however it is worded.

        What differs from run to run is given by a name, `PORT=port`; it must be there, and the name stands for it.
        """
        __tracebackhide__ = True
        self._compare(self._with_names(told, facts, varying))

    def without_numbers(
        self, told: str | BaseException | pytest.ExceptionInfo, *facts: object, **varying: object
    ) -> None:
        """Compare a message of which every number that has no name is another one in each run, such as a time."""
        __tracebackhide__ = True
        self._compare(re.sub(r"\d+(?:[.,]\d+)*", "N", self._with_names(told, facts, varying)))

    def _with_names(
        self, told: str | BaseException | pytest.ExceptionInfo, facts: tuple[object, ...], varying: dict[str, object]
    ) -> str:
        __tracebackhide__ = True
        # First the folders: a path of this session could hold a short fact by chance.
        text = _named(told.value if isinstance(told, pytest.ExceptionInfo) else told, self._folders)
        names = {_named(value, self._folders): name for name, value in varying.items()}
        missing = [fact for fact in (*(_named(fact, self._folders) for fact in facts), *names) if fact not in text]
        if missing:
            pytest.fail(f"{' and '.join(map(repr, missing))} must be said in:\n{text}")
        return _named(text, names)

    def _compare(self, text: str) -> None:
        __tracebackhide__ = True
        self.count += 1
        self._messages.say(self._item, self.count, _as_kept(text))


def lines_with(output: str, *facts: object) -> list[str]:
    """The lines of an output that hold these facts, in order; once what several ranks have printed alike."""
    return list(dict.fromkeys(line for line in output.splitlines() if all(str(fact) in line for fact in facts)))


def line_with(output: str, *facts: object) -> str:
    """The line of an output that holds these facts; ranks may have printed it alike, and no other one holds them."""
    __tracebackhide__ = True
    found = lines_with(output, *facts)
    if len(found) != 1:
        pytest.fail(f"{len(found)} lines hold {' and '.join(repr(str(fact)) for fact in facts)}; one has to:\n{output}")
    return found[0]


@pytest.fixture
def says(request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Says]:
    """Compare a message with what `messages.txt` has of this test."""
    messages = request.config.pluginmanager.get_plugin(Messages.NAME)
    own = tmp_path_factory.getbasetemp()
    # What is made once for all workers may be in the folder of another one.
    shared = own.parent.glob("popen-*") if "PYTEST_XDIST_WORKER" in os.environ else [own]
    folders = {
        str(tmp_path): "TMP",
        **{str(folder): "SHARED" for folder in shared},
        str(request.config.rootpath): "REPOSITORY",
    }
    told = Says(messages, request.node, folders)
    yield told
    messages.check_count(request.node, told.count)


def read_messages(path: Path) -> dict[Key, str]:
    """The messages of a file; none where there is no such file."""
    messages: dict[Key, str] = {}
    if path.exists():
        _, *blocks = path.read_bytes().decode().split("\n\n")
        for block in blocks:
            head, *lines = block.removesuffix("\n").split("\n")
            name, number = re.fullmatch(r"(.*?)(?: #(\d+))?", head).groups()
            messages[name, int(number or 1)] = "\n".join(line[2:] for line in lines)
    return messages


def write_messages(path: Path, messages: dict[Key, str]) -> None:
    """Write the messages of a file; no file where there are none."""
    blocks = ["# How the messages of these tests read. `pytest --rewrite-messages` writes this file; read its diff.\n"]
    for (name, number), text in sorted(messages.items()):
        head = name if number == 1 else f"{name} #{number}"
        blocks.append("\n".join([head, *(f"| {line}" if line else "|" for line in text.split("\n"))]) + "\n")
    if messages:
        path.write_bytes("\n".join(blocks).encode())
    else:
        path.unlink(missing_ok=True)


def _name(item: pytest.Item) -> str:
    return f"{item.path.name}::{item.nodeid.partition('::')[2]}"


def _named(told: object, names: dict[str, str]) -> str:
    text = str(told)
    for value, name in names.items():
        text = text.replace(value, name)
    return text


def _as_kept(text: str) -> str:
    """The text as a file can hold it, without spaces that nobody sees and what is another one in another session."""
    text = text.encode(errors="backslashreplace").decode().removesuffix("\n")
    for varying, name in _VARYING.items():
        text = re.sub(varying, name, text)
    return "\n".join(line.rstrip(" ") for line in text.split("\n"))
