"""The output of `megaslm inspect --row`: a row's text by document, coloured by losses or marked by a mask."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.rule import Rule
from rich.style import Style
from rich.table import Table
from rich.text import Text

from megaslm.dataset.score_summary import perplexity
from megaslm.inspect.row_text import RowDocument, RowText
from megaslm.observe.display import visible, visible_on_one_line

_SELECTED = Style(color="#0b2e13", bgcolor="#b7e4c7")
_LEGEND = Style(dim=True)
_HARDEST = 10
_CONTEXT_CHARACTERS = 32
_RULE_WIDTH = 100
# From light to dark, so that the order shows to the colour-blind too; of the 256 colours that most terminals have.
_DARK, _WHITE = "color(16)", "color(231)"
_STEPS: tuple[tuple[float, Style], ...] = (
    (0.5, Style()),
    (1.0, Style(color=_DARK, bgcolor="color(230)")),
    (2.0, Style(color=_DARK, bgcolor="color(221)")),
    (4.0, Style(color=_DARK, bgcolor="color(208)")),
    (6.0, Style(color=_DARK, bgcolor="color(166)")),
    (8.0, Style(color=_WHITE, bgcolor="color(160)")),
    (math.inf, Style(color=_WHITE, bgcolor="color(88)")),
)
"""Style of a token by the upper limit of its loss, in nats."""
_RICH = ("256", "truecolor")
_BOUND = Style(color="cyan")
_SIGN = Style(color="cyan", bold=True)
_CONTEXT = Style(dim=True)


class ShownToken(NamedTuple):
    """A stretch of displayed text, and the positions of the tokens that it shows."""

    text: str
    places: range
    style: Style


class SelectionMarks:
    """The marks of a row's selected tokens."""

    def __init__(self, selected: Sequence[bool], *, what: str = "that the mask selects", colours: bool) -> None:
        """`selected` says of each token whether it is selected, and `what` tells the user what that means."""
        self._selected = selected
        self._what = what
        self._colours = colours

    def legend(self) -> Text:
        """The meaning of the marks."""
        mark = (" … ", _SELECTED) if self._colours else "[[…]]"
        return Text.assemble(mark, (f" marks the {sum(self._selected):,} tokens {self._what}", _LEGEND))

    def text_of(self, pieces: Iterable[ShownToken]) -> Text:
        """The pieces one after the other. Adjacent selected pieces share one mark."""
        text = Text(overflow="fold")
        for selected, run in groupby(pieces, self._is_selected):
            marked = Text()
            for piece in run:
                marked.append(piece.text, piece.style + _SELECTED if selected and self._colours else piece.style)
            text.append_text(Text.assemble("[[", marked, "]]") if selected and not self._colours else marked)
        return text

    def _is_selected(self, piece: ShownToken) -> bool:
        return any(self._selected[place] for place in piece.places)


def show_row(console: Console, row: RowText) -> None:
    """Prints a row. Without 256 colours, brackets mark the hardest tokens, or those that a mask selects."""
    view = _RowView(row, colours=console.color_system in _RICH and not console.no_color)
    width = min(console.width, _RULE_WIDTH)
    console.print(view.heading())
    if row.ref_loss is not None:
        console.print(view.mean_loss())
        console.print(view.legend())
    if view.marks is not None:
        console.print(view.marks.legend())
    if row.weight is not None:
        console.print(view.weights())
    for document in row.documents:
        console.print(_opening(document), width=width)
        # Outside a terminal, lines have no maximum width.
        console.print(view.text_of(document), soft_wrap=not console.is_terminal)
        console.print(_closing(document), width=width)
    if row.padding_tokens:
        console.print(f"padding × {row.padding_tokens}", style=_BOUND, justify="right", width=width)
    if row.ref_loss is not None:
        console.print(view.hardest_table())


class _RowView:
    def __init__(self, row: RowText, *, colours: bool) -> None:
        self.marks = _marks_of(row, colours=colours)
        self._row = row
        self._colours = colours
        self._losses = row.ref_loss or (None,) * len(row.tokens)
        by_loss = sorted((-loss, token) for token, loss in enumerate(self._losses) if loss is not None)
        self._hardest = [token for _, token in by_loss[:_HARDEST]]

    def heading(self) -> Text:
        place = self._row.place
        return Text.assemble(
            (f"{place.split}/{place.domain}", "bold"),
            f" · row {place.row:,} of {place.rows:,} · row {place.row_of_part:,} of {place.part}"
            f" · {len(self._row.tokens):,} tokens",
        )

    def mean_loss(self) -> str:
        losses = [loss for loss in self._losses if loss is not None]
        if not losses:
            return "none of its tokens is a target"
        mean = sum(losses) / len(losses)
        return f"mean ref_loss {mean:.3f} nats · perplexity {perplexity(mean):,.2f} · {len(losses):,} targets"

    def weights(self) -> str:
        weights = [weight for weight in self._row.weight or () if weight is not None]
        if not weights:
            return "none of its tokens has a weight"
        mean = sum(weights) / len(weights)
        return f"weight from {min(weights):.4g} to {max(weights):.4g} · mean {mean:.4g} · {len(weights):,} targets"

    def legend(self) -> Text:
        if not self._colours:
            return Text(f"[[…]] marks the {len(self._hardest)} tokens of largest ref_loss", style=_CONTEXT)
        line = Text.assemble(("ref_loss in nats ", _CONTEXT))
        least = 0.0
        for most, style in _STEPS:
            line.append(f" {least:g}–{most:g} " if most < math.inf else f" {least:g} and more ", style=style)
            least = most
        if self._row.trained is not None:
            line.append(" no target", style=_CONTEXT)
        return line

    def text_of(self, document: RowDocument) -> Text:
        if self.marks is not None:
            return self.marks.text_of(self._shown(document))
        text = Text(overflow="fold")
        for piece in self._shown(document):
            text.append_text(self._marked(*piece))
        return text

    def _shown(self, document: RowDocument) -> Iterator[ShownToken]:
        if document.bos is not None:
            yield ShownToken(f"⟨{self._row.bos}⟩", range(document.bos, document.bos + 1), _SIGN)
        for piece in document.pieces:
            yield ShownToken(visible(piece.text), range(piece.first, piece.first + piece.tokens), Style())
        if document.ends:
            yield ShownToken(f"⟨{self._row.eos}⟩", range(document.stop, document.stop + 1), _SIGN)

    def hardest_table(self) -> Table:
        table = Table(title="hardest tokens", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        table.add_column("place", justify="right")
        table.add_column("ref_loss", justify="right")
        table.add_column("probability", justify="right")
        if self._row.ref_entropy is not None:
            table.add_column("ref_entropy", justify="right")
        table.add_column("after", justify="right", no_wrap=True, style=_CONTEXT)
        table.add_column("token", no_wrap=True)
        words = dict(self._words())
        for token in self._hardest:
            loss = self._losses[token]
            assert loss is not None, "only tokens with a loss are sorted"
            entropies = [] if self._row.ref_entropy is None else [f"{self._row.ref_entropy[token]:.2f}"]
            before, shown = words[token]
            table.add_row(
                str(token),
                f"{loss:.2f}",
                _probability(loss),
                *entropies,
                Text(before),
                Text.assemble((shown, self._style(loss))),
            )
        return table

    def _words(self) -> Iterator[tuple[int, tuple[str, str]]]:
        """Each token's index, the text before it in its document, and its own text."""
        for document in self._row.documents:
            before = ""
            for piece in document.pieces:
                shown = visible_on_one_line(piece.text)
                for place in range(piece.first, piece.first + piece.tokens):
                    yield place, (before[-_CONTEXT_CHARACTERS:], shown)
                before += shown
            if document.ends:
                yield document.stop, (before[-_CONTEXT_CHARACTERS:], f"⟨{self._row.eos}⟩")

    def _marked(self, shown: str, places: range, style: Style) -> Text:
        """The shown text of the tokens at `places`, styled by the largest of their losses."""
        losses = [loss for loss in (self._losses[place] for place in places) if loss is not None]
        if losses:
            style += self._style(max(losses))
        elif self._row.trained is not None:
            style += _CONTEXT
        if not self._colours and any(place in self._hardest for place in places):
            shown = f"[[{shown}]]"
        return Text(shown, style=style)

    def _style(self, loss: float) -> Style:
        if not self._colours:
            return Style()
        return next(style for most, style in _STEPS if loss < most)


def _marks_of(row: RowText, *, colours: bool) -> SelectionMarks | None:
    """The marks of a row without losses: of the selected tokens or else, under a target mask, of the trained ones."""
    if row.selected is not None:
        return SelectionMarks(row.selected, colours=colours)
    if row.trained is not None and row.ref_loss is None:
        return SelectionMarks(row.trained, what="that objective sft trains on", colours=colours)
    return None


def _opening(document: RowDocument) -> Rule:
    title = "document begins" if document.begins else "continues from the row before"
    return Rule(title, style=_BOUND, characters="─", align="left")


def _closing(document: RowDocument) -> Rule:
    title = "document ends" if document.ends else "continues in the next row"
    return Rule(title, style=_BOUND, characters="─", align="right")


def _probability(loss: float) -> str:
    share = math.exp(-loss)
    return f"{share:.1%}" if share >= 0.01 else f"1 in {1 / share:,.0f}" if loss < 14 else f"{share:.0e}"
