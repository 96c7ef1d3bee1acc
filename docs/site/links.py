"""Where a link of a page leads on the site: to another page, to a picture, or to a file shown as a page."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath

from docs.site.blocks import prose_lines

SHOWN_FILES = {".yaml": "yaml", ".sh": "bash", ".sbatch": "bash"}
"""Files that pages link to or name, and that become pages: ending to language."""
PICTURES = (".png", ".svg")
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_NAMED = re.compile(
    r"(?<![\w/\[`.])(`?)"
    r"((?:docs|data|configs|launcher)/[\w./-]*\w|(?:README|CHANGELOG|CONTRIBUTING|STYLE)\.md)"
    r"\1(?![\w/\]`*])"
)


@dataclass
class Links:
    """Rewrites the links of pages, and notes which files and pictures they lead to."""

    root: Path
    """The repository."""
    pages: Mapping[str, tuple[str, str]]
    """File of the repository to its page on the site and the page's short title."""
    shown: set[str] = field(default_factory=set)
    """Files that links lead to, as paths in the repository."""
    pictures: set[str] = field(default_factory=set)

    def rewritten(self, source: str, text: str) -> str:
        """The text of the file `source` with its links as they are on the site. Code stays as it is."""
        made: list[str] = []
        # A link may go over the end of a line, but not into code.
        for is_prose, lines in groupby(zip(prose_lines(text), text.split("\n"), strict=True), key=itemgetter(0)):
            written = "\n".join(line for _, line in lines)
            made.append(self._prose(source, written) if is_prose else written)
        return "\n".join(made)

    def _prose(self, source: str, text: str) -> str:
        made, place = "", 0
        for link in _LINK.finditer(text):
            made += self._with_named(source, text[place : link.start()]) + self._link(source, link)
            place = link.end()
        return made + self._with_named(source, text[place:])

    def _link(self, source: str, link: re.Match[str]) -> str:
        mark, words, target = link.groups()
        path, hash_mark, anchor = target.partition("#")
        if not path or "://" in path:
            return link[0]
        named = os.path.normpath(PurePosixPath(source).parent / path)
        place = self._place(source, named)
        if place is None:
            raise ValueError(f"{source}: {target} is no page, no picture and no file that is shown")
        if words == path and named in self.pages:
            words = self.pages[named][1]
        return f"{mark}[{words}]({place}{hash_mark}{anchor})"

    def _with_named(self, source: str, text: str) -> str:
        """Links for the files that a text names without a link. Code that is more than a file's name has none."""
        pieces = re.split(r"(`[^`]+`)", text)
        return "".join(
            _NAMED.sub(lambda found: self._named(source, found), piece)
            if not piece.startswith("`") or _NAMED.fullmatch(piece)
            else piece
            for piece in pieces
        )

    def _named(self, source: str, found: re.Match[str]) -> str:
        named = found[2]
        if named == source:
            return found[0]
        place = self._place(source, named)
        if place is None or (named not in self.pages and not found[1]):
            return found[0]
        words = self.pages[named][1] if named in self.pages else found[0]
        return f"[{words}]({place})"

    def _place(self, source: str, named: str) -> str | None:
        """The path from one page to the page of another file; None where there is none."""
        suffix = PurePosixPath(named).suffix
        if named in self.pages:
            target = self.pages[named][0]
        elif not (self.root / named).is_file():
            return None
        elif suffix in PICTURES:
            self.pictures.add(named)
            target = picture_place(named)
        elif suffix in SHOWN_FILES:
            self.shown.add(named)
            target = shown_place(named)
        else:
            return None
        folder = PurePosixPath(self.pages[source][0]).parent
        return os.path.relpath(target, folder)


def picture_place(named: str) -> str:
    """Where the site has a picture of the repository."""
    return f"pictures/{PurePosixPath(named).name}"


def shown_place(named: str) -> str:
    """The page that shows a file of the repository."""
    return f"files/{named}.md"
