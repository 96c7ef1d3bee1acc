"""A row can be read with colours and without."""

import io
from itertools import pairwise
from pathlib import Path

import pytest
from rich.color import Color
from rich.console import Console
from rich.style import Style

from megaslm.config.recipe import Bos
from megaslm.inspect.row_text import read_row
from megaslm.inspect.row_view import _STEPS, show_row
from tests.inspected import make_inspected
from tests.messages import Says


def printed(dataset: Path, row: int, **settings: object) -> str:
    output = io.StringIO()
    console = Console(file=output, width=90, highlight=False, **settings)  # type: ignore[arg-type]
    show_row(console, read_row(dataset, "train", row))
    return output.getvalue()


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inspected(tmp_path_factory.mktemp("scored"), scored=True).folder


def test_without_colours_it_is_plain_text_with_marks(scored: Path, says: Says) -> None:
    lines = printed(scored, 4).splitlines()
    says(lines[0], "train/a", "row 4", "row 0", "part-00001", "9")
    says(lines[1], "0.786", "2.19", "7")
    says(lines[2], "7", "ref_loss")
    says(lines[3])
    assert lines[4:6] == ["a[[b]][[⇥   ]][[c]][[d]][[↵", "]][[⟨</s>⟩]]"]
    says(lines[6])


def test_a_row_begins_and_ends_within_documents(tmp_path: Path, says: Says) -> None:
    make_inspected(tmp_path, scored=False)
    text = printed(tmp_path, 1)
    says(text)
    assert [line for line in text.splitlines()[1:] if "──" not in line] == ["ijkl⟨</s>⟩", "mnop"]
    says(printed(tmp_path, 3), "× 4")
    assert "\x1b" not in printed(tmp_path, 1)


@pytest.mark.parametrize("bos", ["document", "row"])
def test_bos_is_shown_where_it_is(tmp_path: Path, bos: Bos, says: Says) -> None:
    make_inspected(tmp_path, scored=False, bos=bos)
    says(printed(tmp_path, 1))


def test_each_token_has_the_colour_of_its_loss(scored: Path) -> None:
    """Row 1 begins at 2 nats and each token adds a quarter."""
    text = printed(scored, 1, force_terminal=True, color_system="truecolor")
    legend, coloured = text.splitlines()[2], text.splitlines()[4]
    two_to_four = "\x1b[38;5;16;48;5;208m"
    assert f"{two_to_four} 2–4 " in legend
    assert coloured.startswith("i")
    assert f"{two_to_four}j" in coloured
    assert "[[" not in text


def test_no_color_is_respected(scored: Path) -> None:
    text = printed(scored, 1, force_terminal=True, color_system="truecolor", no_color=True)
    assert "48;5;" not in text
    assert "[[j]]" in text


def test_colours_are_ordered_by_lightness_and_legible() -> None:
    """By WCAG's relative luminance: each step is at most 3/4 as light as the one before, its text readable."""
    styles = [style for _, style in _STEPS[1:]]
    grounds, texts = ([luminance(colour) for colour in side] for side in zip(*map(colours_of, styles), strict=True))
    assert all(after <= 0.75 * before for before, after in pairwise(grounds))
    for ground, text in zip(grounds, texts, strict=True):
        assert (max(ground, text) + 0.05) / (min(ground, text) + 0.05) > 4.5


def test_sixteen_colours_are_too_few(scored: Path) -> None:
    assert "[[j]]" in printed(scored, 1, force_terminal=True, color_system="standard")


def colours_of(style: Style) -> tuple[Color, Color]:
    assert style.bgcolor is not None
    assert style.color is not None
    return style.bgcolor, style.color


def luminance(colour: Color) -> float:
    """https://www.w3.org/TR/WCAG21/#dfn-relative-luminance."""
    shares = [value / 255 for value in colour.get_truecolor()]
    red, green, blue = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_hardest_tokens_are_listed_with_what_precedes_them(scored: Path, says: Says) -> None:
    text = printed(scored, 2)
    says(text)
    first = next(line for line in text.splitlines() if line.split()[:1] == ["8"])
    assert first.split() == ["8", "5.75", "1", "in", "314", "11.50", "qrstuv", "w"]
