"""Which files a source of a recipe means."""

import os
import stat
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

from megaslm.config.home import home_expanded
from megaslm.config.recipe import Source
from megaslm.data.storage.remote import is_remote, list_remote, split_glob
from megaslm.data.text.documents import InputFile, describe, status_of
from megaslm.data.text.python_stdlib import standard_library_files
from megaslm.data.text.selection import MAGIC, Selection, in_words
from megaslm.data.text.walk import FoundFile, walk
from megaslm.errors import DataError


def find_files(source: Source, passed_over: Counter[str] | None = None) -> list[InputFile]:
    """Every file of a source, each once: paths in the recipe's order, the files of a folder or a glob sorted.

    Args:
        source: whose paths are looked at.
        passed_over: what lies there and is not read is added to it, by the reason.

    Raises DataError where a path leads to no file, and for what cannot be looked at.
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
    """The files by their URLs."""
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
    """The folder or file that a path begins with, and the glob that follows; a name that is there is none."""
    path = home_expanded(pattern)
    for place, part in enumerate(path.parts):
        # A name such as v[1], which as a glob means v1 alone; where * or ? is a name, its glob means that too.
        is_there = not fnmatchcase(part, part) and status_of(Path(*path.parts[: place + 1])) is not None
        if any(sign in part for sign in MAGIC) and not is_there:
            return Path(*path.parts[:place]), path.parts[place:]
    return path, ()


def _why_nothing(pattern: str, source: Source, passed_over: Counter[str]) -> str:
    endings = Selection(source, (), Counter()).endings
    wanted = f"; in folders, files that end in {endings} are read" if endings else ""
    there = f"; passed over: {in_words(passed_over)}" if passed_over else ""
    return f"no file matches {pattern!r} (relative to {Path.cwd()}){wanted}{there}"
