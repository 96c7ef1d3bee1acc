"""What a mask selects can be seen, with colours and without."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from megaslm.inspect.dataset_facts import dataset_facts
from megaslm.inspect.dataset_view import show_dataset
from megaslm.inspect.row_text import read_row
from megaslm.inspect.row_view import show_row
from megaslm.scoring.mask import mask_rule
from megaslm.scoring.mask_job import MaskRequest, mask
from tests.inspected import make_inspected
from tests.messages import Says


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference finds targets the harder the later they come, so each row's first are selected."""
    folder = tmp_path_factory.mktemp("masked")
    make_inspected(folder / "scored", scored=True)
    mask(MaskRequest(folder / "scored", folder / "masked", mask_rule("reference", "0.6", 9.5)))
    return folder / "masked"


def printed(dataset: Path, row: int, **settings: object) -> list[str]:
    output = io.StringIO()
    console = Console(file=output, width=90, highlight=False, **settings)  # type: ignore[arg-type]
    show_row(console, read_row(dataset, "train", row))
    return output.getvalue().splitlines()


def test_without_colours_what_is_selected_side_by_side_stands_in_one_pair_of_brackets(masked: Path, says: Says) -> None:
    lines = printed(masked, 1)
    says(lines[1], "4")
    assert [line for line in lines[2:] if "──" not in line] == ["i[[jkl⟨</s>⟩]]", "mnop"]
    assert "\x1b" not in "".join(lines)


def test_with_colours_it_stands_on_a_background(masked: Path) -> None:
    text = "\n".join(printed(masked, 1, force_terminal=True, color_system="truecolor"))
    background = "\x1b[38;2;11;46;19;48;2;183;228;199m"
    assert f"i{background}j\x1b[0m{background}k\x1b[0m{background}l\x1b[0m" in text
    assert text.count("48;2;183;228;199") == 5
    assert "[[" not in text


def test_the_dataset_says_what_is_selected(masked: Path, says: Says) -> None:
    output = io.StringIO()
    show_dataset(Console(file=output, width=140, highlight=False), dataset_facts(masked))
    text = output.getvalue()
    (rule,) = (line for line in text.splitlines() if "slm.criterion" in line)
    says(rule, "reference", "keep_ratio 0.6", "sequence", "9.5")
    (a,) = (line for line in text.splitlines() if line.split()[:2] == ["train", "a"])
    rows = [read_row(masked, "train", row, "a").selected for row in range(6)]
    assert a.split()[-1] == f"{sum(sum(row) for row in rows if row) / 38:.2%}"
    assert "ref_loss" not in text
