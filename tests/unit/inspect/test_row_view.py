"""A row can be read with colours and without."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from megaslm.config.recipe import Bos
from megaslm.inspect.row_text import read_row
from megaslm.inspect.row_view import show_row
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
    two_to_four = "\x1b[38;2;26;26;26;48;2;246;176;90m"
    assert f"{two_to_four} 2–4 " in legend
    assert coloured.startswith("i")
    assert f"{two_to_four}j" in coloured
    assert "[[" not in text


def test_no_color_is_respected(scored: Path) -> None:
    text = printed(scored, 1, force_terminal=True, color_system="truecolor", no_color=True)
    assert "48;2;" not in text
    assert "[[j]]" in text


def test_the_hardest_tokens_are_listed_with_what_precedes_them(scored: Path, says: Says) -> None:
    text = printed(scored, 2)
    says(text)
    first = next(line for line in text.splitlines() if line.split()[:1] == ["8"])
    assert first.split() == ["8", "5.75", "1", "in", "314", "11.50", "qrstuv", "w"]
