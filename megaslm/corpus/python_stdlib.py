"""The running Python's standard library as text that every machine has.

A file's group is its module, and a test belongs to the module that it tests. So held-out documentation comes from
modules that no training text contains.
"""

import ast
import os
import re
import sys
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from megaslm.corpus.documents import InputFile, describe
from megaslm.errors import DataError

_NOT_OURS = {"site-packages", "dist-packages", "__pycache__", "_bundled", "lib-dynload"}
_BUILT_ON_THIS_MACHINE = re.compile(r"config-.*|_sysconfigdata.*|_sysconfig_vars.*|build-details\.json")
_TEXT_SUFFIXES = (".py", ".txt", ".rst", ".toml", ".json", ".xml", ".html", ".cfg", ".def", ".decTest")
_TOPICS = "pydoc_data/topics.py"
_SHORTEST_PREFIX = 4

# Distributions are known to leave these out or to put them into separate packages.
_OFTEN_STRIPPED = ("test", "distutils", "idlelib", "lib2to3", "pydoc_data", "tkinter", "turtledemo", "venv")


def standard_library_files(reader: str) -> list[InputFile]:
    """The text files of the standard library, sorted. For the reader python-docs only modules that are not tests."""
    root = _root()
    paths = [PurePosixPath(path.relative_to(root).as_posix()) for path in _walk(root)]
    group_of = _Groups(paths)
    wanted = [path for path in paths if _has_documentation(path)] if reader == "python-docs" else paths
    files = []
    for path in wanted:
        label = f"python-{'.'.join(map(str, sys.version_info[:3]))}/{path}"
        files.append(describe(root / path, label, group=group_of(path)))
    return files


def absent_packages() -> list[str]:
    """Packages of the standard library that this Python lacks."""
    expected = [name for name in _OFTEN_STRIPPED if name == "test" or name in sys.stdlib_module_names]
    return [name for name in expected if not (_root() / name / "__init__.py").is_file()]


def documentation(file: InputFile, source_code: str, min_characters: int) -> Iterator[str]:
    """The docstrings of a module, its classes and functions, each once, in order; then the module's topics, if any.

    Raises DataError where the file is not Python.
    """
    tree = _parse(file, source_code)
    docstrings = dict.fromkeys(_docstrings(tree))
    for text in [*docstrings, *(_topics(tree) if file.label.endswith(_TOPICS) else [])]:
        if len(text) >= min_characters:
            yield text


def _root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _walk(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as listing:
        entries = sorted(listing, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name in _NOT_OURS or _BUILT_ON_THIS_MACHINE.fullmatch(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        elif entry.is_file() and entry.name.endswith(_TEXT_SUFFIXES):
            yield Path(entry.path)


def _has_documentation(path: PurePosixPath) -> bool:
    is_test = any(part in ("test", "tests", "idle_test") or part.startswith("test_") for part in path.parts)
    return path.suffix == ".py" and not is_test


class _Groups:
    """Finds a file's module, by names alone."""

    def __init__(self, paths: Iterable[PurePosixPath]) -> None:
        tops, owners = set(sys.stdlib_module_names), defaultdict(set)
        for path in paths:
            tops.add(_stem(path.parts[0]))
            for part in path.parts[1:]:
                owners[_stem(part)].add(path.parts[0])
        self._modules = {name.lower(): name for name in sorted(tops) if not name.startswith("_") and name != "test"}
        self._submodules = {name: packages.pop() for name, packages in owners.items() if len(packages) == 1}

    def __call__(self, path: PurePosixPath) -> str:
        top = _stem(path.parts[0])
        if top == "test" and len(path.parts) > 1:
            subject = re.sub(r"^_?test_", "", _stem(path.parts[1]))
            return self._tested_by(subject)
        # `_pydecimal` is decimal in Python, `_collections_abc` a piece of collections.
        bare = top.strip("_")
        return self._by_words(bare) or self._by_words(bare.removeprefix("py")) or bare

    def _tested_by(self, subject: str) -> str:
        owner = self._submodules.get(subject)
        return self._by_words(subject) or (owner if owner != "test" else None) or self._by_prefix(subject) or subject

    def _by_words(self, name: str) -> str | None:
        words = name.lower().split("_")
        prefixes = ("_".join(words[:count]) for count in range(len(words), 0, -1))
        return next((self._modules[prefix] for prefix in prefixes if prefix in self._modules), None)

    def _by_prefix(self, name: str) -> str | None:
        prefixes = (name[:length].lower() for length in range(len(name), _SHORTEST_PREFIX - 1, -1))
        return next((self._modules[prefix] for prefix in prefixes if prefix in self._modules), None)


def _stem(name: str) -> str:
    return name.removesuffix(".py")


def _parse(file: InputFile, source_code: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            return ast.parse(source_code)
    except (SyntaxError, ValueError) as error:
        raise DataError(f"{file.path} is not Python that this interpreter reads: {error}") from error


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node, clean=True)
        if text:
            yield text
    for child in ast.iter_child_nodes(node):
        yield from _docstrings(child)


def _topics(tree: ast.Module) -> Iterator[str]:
    """The language reference that `help()` shows: `topics = {"assert": "...", ...}`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            yield from ast.literal_eval(node.value).values()
