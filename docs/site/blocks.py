"""The blocks of a page, as CommonMark has them: which lines are text, which code is commands."""

from markdown_it import MarkdownIt
from markdown_it.token import Token


def blocks(text: str) -> list[Token]:
    """The blocks of a page, tables included."""
    return MarkdownIt("commonmark").enable("table").parse(text)


def is_commands(block: Token) -> bool:
    """Whether a block is code that holds commands of a shell."""
    return block.type == "fence" and block.info == "sh"


def prose_lines(text: str) -> list[bool]:
    """For each line of a page whether it is text, not code."""
    is_prose = [True] * (text.count("\n") + 1)
    for token in blocks(text):
        if token.type in ("fence", "code_block") and token.map is not None:
            for line in range(*token.map):
                is_prose[line] = False
    return is_prose


def cell(text: str) -> str:
    """The text on one line, for a cell of a table. A pipe in code has no escape: Python-Markdown would show it."""
    pieces = " ".join(text.split()).split("`")
    return "`".join(piece if place % 2 else piece.replace("|", r"\|") for place, piece in enumerate(pieces))
