"""The tokens of a row that a mask selects, marked: by a background or, where there is no colour, by brackets."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from rich.style import Style
from rich.text import Text

_SELECTED = Style(color="#0b2e13", bgcolor="#b7e4c7")
_LEGEND = Style(dim=True)


class ShownPiece(NamedTuple):
    """What the tokens at `places` show as."""

    text: str
    places: range
    style: Style


class SelectionMarks:
    """The marks of one row."""

    def __init__(self, selected: Sequence[bool], *, colours: bool) -> None:
        """Takes for each token whether it is selected."""
        self._selected = selected
        self._colours = colours

    def legend(self) -> Text:
        """What the marks mean."""
        mark = (" … ", _SELECTED) if self._colours else "[[…]]"
        return Text.assemble(mark, (f" marks the {sum(self._selected):,} tokens that the mask selects", _LEGEND))

    def text_of(self, pieces: Iterable[ShownPiece]) -> Text:
        """The pieces one after the other; what is selected side by side has one mark."""
        text = Text(overflow="fold")
        for selected, run in groupby(pieces, self._is_selected):
            marked = Text()
            for piece in run:
                marked.append(piece.text, piece.style + _SELECTED if selected and self._colours else piece.style)
            text.append_text(Text.assemble("[[", marked, "]]") if selected and not self._colours else marked)
        return text

    def _is_selected(self, piece: ShownPiece) -> bool:
        return any(self._selected[place] for place in piece.places)
