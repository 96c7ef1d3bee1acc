"""Comments behind the settings of a YAML file, in columns."""

import re
from collections.abc import Iterator

MARK = "\t# "
"""Between a setting and its comment, until they are aligned. No scalar of YAML holds a tab as it is."""
_WIDEST = 40
"""Characters of a setting that may set the column. Behind a longer one, such as a path, the comment follows at once."""


def aligned(text: str) -> str:
    """The text with the comments of each section in one column, two spaces behind its longest setting."""
    return "\n".join(line for section in _sections(text.split("\n")) for line in _in_one_column(section))


def _sections(lines: list[str]) -> Iterator[list[str]]:
    """The lines of each top-level setting with inner ones, and of the settings between two of these."""
    section: list[str] = []
    for line in lines:
        is_left = section and not line.startswith(" ") and section[-1].startswith(" ")
        if is_left or re.fullmatch(r"[a-z_]+:", line):
            yield section
            section = []
        section.append(line)
    yield section


def _in_one_column(lines: list[str]) -> Iterator[str]:
    lengths = [len(line.partition(MARK)[0]) for line in lines if MARK in line]
    column = max((length for length in lengths if length <= _WIDEST), default=0)
    for line in lines:
        setting, mark, comment = line.partition(MARK)
        yield f"{setting:{column}}  # {comment}" if mark else line
