"""The files below a folder of this machine, links followed, each file once."""

import os
import stat
from pathlib import Path
from typing import NamedTuple

from megaslm.data.text.selection import Selection, Way
from megaslm.errors import DataError

_OTHER_NAME = "other names of what is read"
_NO_FILE = "sockets, pipes and devices"


class FoundFile(NamedTuple):
    """A file of a folder."""

    path: str
    """By the name that led to it."""
    real_path: str
    """Free of links: equal where two names are one file."""


class _Entry(NamedTuple):
    path: str
    real_path: str
    way: Way


def walk(folder: str, selection: Selection) -> list[FoundFile]:
    """Every file below `folder` that is selected, sorted by its path; one that has several names by its own.

    Links to files and folders are followed, in a circle once. What is neither is passed over, and never opened. Raises
    DataError for a link that leads nowhere and for a folder that cannot be listed.
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
            # Links come last, so that what they lead to keeps its own name where it has one here.
            links, self._links = sorted(self._links, key=lambda link: link.way.names), []
            waiting = [target for link in reversed(links) for target in self._follow(link)]
        return sorted(self._found.values(), key=lambda file: Path(file.path))

    def _enter(self, folder: _Entry) -> list[_Entry]:
        """Take what is in a folder; gives the folders in it."""
        # What a folder gives depends on what is left of the glob, and on nothing else.
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
        """Take the file that a link leads to, or give the folder."""
        if any(self._selection.is_left_out(link.way, is_folder=is_folder) for is_folder in (False, True)):
            return []
        try:
            mode = Path(link.path).stat().st_mode
        except OSError as error:
            raise DataError(
                f"{link.path} is a link to {Path(link.path).readlink()}, which cannot be followed ({error.strerror}); "
                "mend the link, remove it, or name it in `exclude`"
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
