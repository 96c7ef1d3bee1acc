"""CommonMark, as the files of docs/ are written and GitHub reads them, laid out as Python-Markdown reads it.

Python-Markdown wants four spaces per level of a list, and a blank line before a list, a table or a block of code. It
also does not know the language of indented code. Words are left as they are.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

_MARKER = re.compile(r" {0,3}(?:[-*+]|\d+[.)]) +")
_COMMANDS = re.compile(
    r"(?:#[^\n]*\n|[A-Z_]+=\S+ )*"  # comments and variables before the first command
    r"(?:megaslm|make|git|hf|ray|sbatch|tensorboard|torchrun|launcher/\S+|\.ci/\S+)[ \n]"
)
_CODE = re.compile(r"`[^`]*`")
_PYTHON = re.compile(r"(?:from|import) \w")
_INDENT = "    "
_APART = ("table_open", "bullet_list_open", "ordered_list_open", "fence", "code_block", "heading_open", "hr")
"""Blocks before which Python-Markdown wants a blank line."""


def blocks(text: str) -> list[Token]:
    """The blocks of a page, tables included."""
    return MarkdownIt("commonmark").enable("table").parse(text)


def is_commands(block: Token) -> bool:
    """Whether a block of code holds commands of a shell."""
    return block.info in ("sh", "bash") or (block.type == "code_block" and _COMMANDS.match(block.content) is not None)


def prose_lines(text: str) -> list[bool]:
    """For each line of a page whether it is text, not code."""
    is_prose = [True] * (text.count("\n") + 1)
    for token in blocks(text):
        if token.type in ("fence", "code_block"):
            for line in range(*_lines(token)):
                is_prose[line] = False
    return is_prose


def laid_out(text: str) -> str:
    """The page, for Python-Markdown. Comments are left out.

    Raises:
        ValueError: the page has a quotation, or HTML that is no comment.
    """
    lines = text.split("\n")
    made: list[str] = []
    _Layout(lines, made).write(blocks(text))
    return "\n".join(made).strip("\n") + "\n"


def cell(text: str) -> str:
    """The text on one line, for a cell of a table. A pipe in code has no escape: Python-Markdown would show it."""
    pieces = " ".join(text.split()).split("`")
    return "`".join(piece if place % 2 else piece.replace("|", r"\|") for place, piece in enumerate(pieces))


class _Layout:
    """Writes a page's blocks one after the other."""

    def __init__(self, lines: Sequence[str], made: list[str]) -> None:
        self._lines = lines
        self._made = made
        self._offsets: list[int] = []
        """Column at which the text of each list item around this place begins."""
        self._marker = ""
        """Marker of a list item whose first line is still to be written."""
        self._blocks: defaultdict[int, int] = defaultdict(int)
        """Level of a list item to the number of blocks in the last item there."""

    def write(self, tokens: Sequence[Token]) -> None:
        """Writes all blocks, with a blank line where the page has one or where it is needed."""
        end = 0
        for token in tokens:
            if token.type == "list_item_close":
                self._offsets.pop()
            if token.map is None or token.nesting < 0:
                continue
            start = token.map[0]
            if start > end or self._needs_blank_line(token):
                self._blank_line()
            self._count(token)
            if token.type == "list_item_open":
                self._open_item(start)
                end = start
            elif token.type in ("fence", "code_block"):
                self._write(_fenced(token))
                end = _lines(token)[1]
            elif token.type == "blockquote_open" or (token.type == "html_block" and token.content[:4] != "<!--"):
                raise ValueError(f"line {start + 1}: a page has no quotation and no HTML but comments")
            elif token.type == "html_block":
                end = token.map[1]
            elif token.type == "table_open":
                rows = (self._inner(line) for line in self._lines[start : token.map[1]])
                self._write(_CODE.sub(lambda code: code[0].replace(r"\|", "|"), row) for row in rows)
                end = token.map[1]
            elif token.type in ("paragraph_open", "heading_open", "hr"):
                self._write(self._inner(line) for line in self._lines[start : token.map[1]])
                end = token.map[1]

    def _needs_blank_line(self, token: Token) -> bool:
        if token.type == "list_item_open":
            return self._blocks[token.level] > 1
        is_nested_list = bool(self._offsets) and token.type.endswith("list_open")
        return token.type in _APART and not self._marker and not is_nested_list

    def _count(self, token: Token) -> None:
        if token.type.endswith("list_open"):
            self._blocks[token.level + 1] = 0
        if token.type == "list_item_open":
            self._blocks[token.level] = 0
        elif token.type != "inline":
            self._blocks[token.level - 1] += 1

    def _open_item(self, start: int) -> None:
        inner = self._inner(self._lines[start])
        marker = _MARKER.match(inner)
        if marker is None:
            raise ValueError(f"line {start + 1}: {inner!r} begins with no marker of a list")
        self._offsets.append((self._offsets[-1] if self._offsets else 0) + len(marker[0]))
        self._marker = marker[0].strip() + " "

    def _inner(self, line: str) -> str:
        """A line without the indentation, or the marker, of the list items around it."""
        offset = self._offsets[-1] if self._offsets else 0
        return line[offset:] if self._marker or not line[:offset].strip() else line.lstrip()

    def _write(self, lines: Iterator[str]) -> None:
        for line in lines:
            depth = len(self._offsets)
            if self._marker:
                self._made.append(_INDENT * (depth - 1) + self._marker + line)
                self._marker = ""
            else:
                self._made.append((_INDENT * depth + line).rstrip())

    def _blank_line(self) -> None:
        if self._made and self._made[-1]:
            self._made.append("")


def _lines(code: Token) -> tuple[int, int]:
    """First line of a block of code, and the line after its last."""
    if code.map is None:
        raise ValueError("a block of code without a place")
    return code.map[0], code.map[1]


def _fenced(code: Token) -> Iterator[str]:
    content = code.content.rstrip("\n")
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`{3,}", content))])
    yield fence + (code.info or _language(code))
    yield from content.split("\n")
    yield fence


def _language(code: Token) -> str:
    if is_commands(code):
        return "sh"
    if _PYTHON.match(code.content):
        return "python"
    try:
        is_settings = isinstance(yaml.safe_load(code.content), dict) and not code.content.startswith("  ")
    except yaml.YAMLError:
        is_settings = False
    return "yaml" if is_settings else "text"
