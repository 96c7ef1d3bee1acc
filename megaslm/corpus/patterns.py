"""The meaning of a recipe's path below its first folder, the same on disks and in object storage.

Every file there is read, counted by the reason why it is not read, or refused.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from megaslm.config.recipe import Source
from megaslm.errors import DataError

USUAL_ENDINGS: dict[str, tuple[str, ...]] = {
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst"),
    "json": (".json", ".json.gz", ".json.zst"),
    "parquet": (".parquet",),
    "text": (".txt", ".txt.gz", ".txt.zst"),
    "tree": ("",),
}
MAGIC = "*?["
"""The characters that make a name a glob."""

_OF_OTHER_PROGRAMS = ("__MACOSX", "_temporary", "_delta_log", "lost+found")
"""Folders in which programs keep copies and notes of the files beside them."""
_COMPRESSION = r"\.(?:gz|zst|bz2|xz|lzma|lz4|br|sz|snappy|zlib|z|zip|7z|gzip|zstd)"
_ENDING = re.compile(rf"(?:\.[a-z][a-z0-9]{{0,9}})?{_COMPRESSION}$|\.[a-z][a-z0-9]{{0,9}}$", re.ASCII | re.IGNORECASE)
_MOST_REASONS = 30
_MOST_SAID = 8


class Way(NamedTuple):
    """How far a path below the folder matches a glob. The glob's parts are numbered."""

    names: tuple[str, ...]
    """The names from the folder down."""
    states: frozenset[int]
    """Parts that the next name may match; the number of parts if everything below matches; empty if nothing does."""
    is_named: bool
    """Whether the last name matches the last part of the glob, so that a file matches whatever its ending."""
    folder_names: int | None
    """How many of the names lead to the folder that matches as a whole; None if there is none."""


class Selection:
    """Follows names from a folder down, and decides on files."""

    def __init__(self, source: Source, glob: Sequence[str], passed_over: Counter[str]) -> None:
        """`glob` follows the folder, name by name. An empty glob means everything in the folder.

        Adds to `passed_over`. Raises DataError where `**` is only a piece of a name.
        """
        for part in glob:
            if "**" in part and part != "**":
                raise DataError(
                    f"paths: {part!r}: ** stands for folders and is a name of its own, as in web/**/*.jsonl"
                )
        named = [place for place, part in enumerate(glob, start=1) if part != "**"]
        self._source = source
        # A folder means all that is in it, so `**` at the end adds nothing.
        self._glob = tuple(glob[: named[-1]] if named else ())
        self._passed_over = passed_over
        self._endings = source.suffixes or USUAL_ENDINGS[source.reader]

    def start(self) -> Way:
        """The folder itself."""
        return Way((), self._closed({0}), is_named=False, folder_names=None if self._glob else 0)

    def step(self, way: Way, name: str) -> Way:
        """One name further. Hidden names and other programs' folders are counted, and match only an explicit part."""
        is_aside = name.startswith(".") or name.endswith("~") or name in _OF_OTHER_PROGRAMS
        whole = len(self._glob)
        reached: set[int] = set()
        would_reach = is_named = False
        for state in way.states:
            part = "**" if state == whole else self._glob[state]
            if part == "**":
                would_reach = True
                reached |= set() if is_aside else {state}
            elif fnmatchcase(name, part):
                would_reach = True
                if not is_aside or part == name or part.startswith("."):
                    reached.add(state + 1)
                    is_named = is_named or state + 1 == whole
        if would_reach and not reached:
            self.pass_over("hidden, or kept by other programs")
        names = (*way.names, name)
        folder_names = len(names) if way.folder_names is None and whole in reached else way.folder_names
        return Way(names, self._closed(reached), is_named, folder_names)

    def is_left_out(self, way: Way, *, is_folder: bool) -> bool:
        """Whether `exclude` leaves out a file, or a folder with all that is in it."""
        inside = "/".join(way.names)
        candidates = {inside, "/" + inside} if way.is_named and not is_folder else {inside}
        if way.folder_names is not None:
            candidates.add("/".join(way.names[way.folder_names :]))
        patterns = self._source.exclude
        if is_folder:
            # `*` crosses slashes: a pattern that ends in `*` and matches the folder's slash matches all that is in it.
            patterns = tuple(pattern for pattern in patterns if pattern.endswith("*"))
            candidates = {f"{candidate}/" for candidate in candidates if candidate}
        return any(fnmatchcase(candidate, pattern) for candidate in candidates for pattern in patterns)

    def takes(self, way: Way, place: str) -> bool:
        """Whether the file at `place` is read. Raises DataError where it is text in an unsupported compression."""
        if len(self._glob) not in way.states or self.is_left_out(way, is_folder=False):
            return False
        if way.is_named or self._has_wanted_ending("/".join(way.names)):
            return True
        self._refuse_other_compression(place)
        self.pass_over(_ending_of(way.names[-1]))
        return False

    def pass_over(self, why: str) -> None:
        """Count a file or folder that is not read, by its reason."""
        has_room = why in self._passed_over or len(self._passed_over) < _MOST_REASONS
        self._passed_over[why if has_room else "other endings"] += 1

    @property
    def endings(self) -> str:
        """The endings that files of a folder must have, in words; empty if any ending is read."""
        return " or ".join(self._endings) if any(self._endings) else ""

    def _closed(self, states: set[int]) -> frozenset[int]:
        """Adds the parts after a `**`, which may match no folder at all."""
        for state in range(len(self._glob)):
            if state in states and self._glob[state] == "**":
                states.add(state + 1)
        return frozenset(states)

    def _has_wanted_ending(self, inside: str) -> bool:
        # Some systems write the usual endings in upper case. The case of the recipe's own endings may carry meaning.
        return (inside if self._source.suffixes else inside.lower()).endswith(self._endings)

    def _refuse_other_compression(self, place: str) -> None:
        stem, dot, last = place.lower().rpartition(".")
        is_usual = not self._source.suffixes and stem.endswith(self._endings)
        if is_usual and re.fullmatch(_COMPRESSION, dot + last):
            raise DataError(
                f"{place}: reader {self._source.reader} reads no files that end in .{last}, only {self.endings}; "
                "unpack the file or pack it anew, or name it in `exclude`"
            )


def in_words(passed_over: Mapping[str, int]) -> str:
    """The reasons and their counts in words, the largest first."""
    most = sorted(passed_over.items(), key=lambda each: (-each[1], each[0]))
    said = "; ".join(f"{why} ({count:,})" for why, count in most[:_MOST_SAID])
    return said + (f"; and for {len(most) - _MOST_SAID} more reasons" if len(most) > _MOST_SAID else "")


def _ending_of(name: str) -> str:
    found = _ENDING.search(name)
    return f"*{found[0].lower()}" if found else "without an ending"
