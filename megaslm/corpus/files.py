"""The files of a recipe's source, and the files below a folder. Links are followed, and each file comes once."""

import os
import stat
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from megaslm.config.hub import hub_hint
from megaslm.config.recipe import Source
from megaslm.config.section import home_expanded
from megaslm.corpus.documents import InputFile, describe, status_of
from megaslm.corpus.patterns import MAGIC, Selection, Way, in_words
from megaslm.corpus.python_stdlib import standard_library_files
from megaslm.errors import DataError
from megaslm.files import looked_in
from megaslm.storage.remote import is_remote, list_remote, split_glob

_OTHER_NAME = "other names of what is read"
_NO_FILE = "sockets, pipes and devices"


class FoundFile(NamedTuple):
    """A file of a folder."""

    path: str
    """The path through which it was found."""
    real_path: str
    """Its path without links, equal if two names are one file."""


class _Entry(NamedTuple):
    path: str
    real_path: str
    way: Way


def walk(folder: str, selection: Selection) -> list[FoundFile]:
    """Every selected file below `folder`, sorted by path. A file with several names has its real one.

    Links to files and folders are followed, circular ones once. Sockets, pipes and devices are passed over and never
    opened. Raises DataError for a dangling link and for a folder that cannot be listed.
    """
    return _Walk(selection).run(folder)


class _Walk:
    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._found: dict[str, FoundFile] = {}
        self._links: list[_Entry] = []
        self._entered: set[tuple[str, frozenset[int]]] = set()

    def run(self, folder: str) -> list[FoundFile]:
        waiting = [_Entry(folder, os.path.realpath(folder), self._selection.start())]
        while waiting:
            while waiting:
                waiting += self._enter(waiting.pop())
            # Links come last, so that a file keeps its real name if that is below the folder too.
            links, self._links = sorted(self._links, key=lambda link: link.way.names), []
            waiting = [target for link in reversed(links) for target in self._follow(link)]
        return sorted(self._found.values(), key=lambda file: Path(file.path))

    def _enter(self, folder: _Entry) -> list[_Entry]:
        """Take the files of a folder. Returns the folders in it."""
        # The files that a folder yields depend only on the rest of the glob.
        if (folder.real_path, folder.way.states) in self._entered:
            self._selection.pass_over(_OTHER_NAME)
            return []
        self._entered.add((folder.real_path, folder.way.states))
        folders = []
        for item in _listed(folder.path):
            way = self._selection.step(folder.way, item.name)
            if not way.states:
                continue
            entry = _Entry(item.path, f"{folder.real_path.rstrip('/')}/{item.name}", way)
            if item.is_symlink():
                self._links.append(entry)
            elif item.is_dir(follow_symlinks=False):
                if not self._selection.is_left_out(way, is_folder=True):
                    folders.append(entry)
            else:
                self._take(entry, is_file=item.is_file(follow_symlinks=False))
        return folders[::-1]

    def _follow(self, link: _Entry) -> list[_Entry]:
        """Take the file that a link leads to, or return the folder."""
        if any(self._selection.is_left_out(link.way, is_folder=is_folder) for is_folder in (False, True)):
            return []
        try:
            mode = Path(link.path).stat().st_mode
        except OSError as error:
            raise DataError(
                f"{link.path} is a link to {Path(link.path).readlink()}, which cannot be followed ({error.strerror}); "
                "repair the link, remove it, or name it in `exclude`"
            ) from error
        target = link._replace(real_path=os.path.realpath(link.path))
        if stat.S_ISDIR(mode):
            return [target]
        self._take(target, is_file=stat.S_ISREG(mode))
        return []

    def _take(self, entry: _Entry, *, is_file: bool) -> None:
        if not is_file:
            self._selection.pass_over(_NO_FILE)
        elif self._selection.takes(entry.way, entry.path):
            if entry.real_path in self._found:
                self._selection.pass_over(_OTHER_NAME)
            else:
                self._found[entry.real_path] = FoundFile(entry.path, entry.real_path)


def _listed(folder: str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as listing:
            return sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{folder}: the folder cannot be listed ({error.strerror}); allow it, or name it in `exclude`"
        ) from error


def find_files(source: Source, passed_over: Counter[str] | None = None) -> list[InputFile]:
    """Every file of a source, each once: paths in the recipe's order, the files of a folder or a glob sorted.

    Args:
        source: the source.
        passed_over: counts, by reason, the files and folders that are not read.

    Raises DataError where a path leads to no file, and where a file or folder cannot be examined.
    """
    if source.reads_standard_library:
        return standard_library_files(source.reader)
    passed_over = Counter() if passed_over is None else passed_over
    found: dict[str, InputFile] = {}
    for pattern in source.paths:
        here: Counter[str] = Counter()
        matches = (_remote_files if is_remote(pattern) else _local_files)(pattern, source, here)
        passed_over.update(here)
        if not matches:
            raise DataError(f"domain {', '.join(source.domain_names)}: {_why_nothing(pattern, source, here)}")
        for real_path, file in matches.items():
            found.setdefault(real_path, file)
    return list(found.values())


def _local_files(pattern: str, source: Source, passed_over: Counter[str]) -> dict[str, InputFile]:
    """The files by their paths without links."""
    root, glob = _split(pattern)
    status = status_of(root)
    if status is None:
        return {}
    if stat.S_ISDIR(status.st_mode):
        found = walk(str(root), Selection(source, glob, passed_over))
    elif glob:
        return {}
    elif stat.S_ISREG(status.st_mode):
        found = [FoundFile(str(root), os.path.realpath(root))]
    else:
        raise DataError(f"{root} is no regular file; expected a file or a folder that can be read again and again")
    return {file.real_path: _described(file.path) for file in found}


def _described(path: str) -> InputFile:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError as error:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise DataError(f"{shown}: the name is not UTF-8, so that no manifest can list the file; rename it") from error
    return describe(Path(path), label=Path(path).as_posix())


def _remote_files(pattern: str, source: Source, passed_over: Counter[str]) -> dict[str, InputFile]:
    root, glob = split_glob(pattern)
    selection = Selection(source, glob, passed_over)
    found = {}
    for file in list_remote(f"{root}/**" if glob else pattern):
        way = selection.start()
        for name in file.url.removeprefix(f"{root}/").split("/"):
            way = selection.step(way, name)
        if file.url == root or selection.takes(way, file.url):
            found[file.url] = InputFile(file.url, file.url, file.size, file.version, file.tag, is_remote=True)
    return found


def _split(pattern: str) -> tuple[Path, tuple[str, ...]]:
    """Splits a path into its fixed beginning, a folder or a file, and the glob after it. An existing name is not a
    glob."""
    path = home_expanded(pattern)
    for place, part in enumerate(path.parts):
        # An existing file v[1] is a name, though as a glob it matches only v1. A glob * or ? matches its own name too.
        is_there = not fnmatchcase(part, part) and status_of(Path(*path.parts[: place + 1])) is not None
        if any(sign in part for sign in MAGIC) and not is_there:
            return Path(*path.parts[:place]), path.parts[place:]
    return path, ()


def _why_nothing(pattern: str, source: Source, passed_over: Counter[str]) -> str:
    endings = Selection(source, (), Counter()).endings
    wanted = f"; in folders, files that end in {endings} are read" if endings else ""
    there = f"; passed over: {in_words(passed_over)}" if passed_over else ""
    where = looked_in(home_expanded(pattern))
    return f"no file matches {pattern!r}{where}{wanted}{there}{_how_to_fetch(pattern, source)}"


def _how_to_fetch(pattern: str, source: Source) -> str:
    if source.hub is None:
        return hub_hint(pattern, "dataset")
    size = "" if source.hub.size_bytes is None else f" ({source.hub.size_bytes / 1e9:.3g} GB)"
    return f"; fetch the files{size} with\n    {source.hub.command}"
