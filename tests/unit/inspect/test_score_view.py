"""The scoring of a dataset at a glance."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from megaslm.dataset.score_summary import LOSS_BIN_EDGES
from megaslm.inspect.dataset_facts import dataset_facts
from megaslm.inspect.dataset_view import _axis, _bars, show_dataset
from megaslm.observe.display import duration, operations
from tests.inspected import below_the_title, make_inspected
from tests.messages import Says
from tests.scores import write_scores


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    dataset = make_inspected(tmp_path, scored=True).folder
    write_scores(dataset, fewest_targets=4)
    return dataset


def printed(dataset: Path, domain: str | None = None, width: int = 140) -> str:
    output = io.StringIO()
    show_dataset(Console(file=output, width=width, highlight=False), dataset_facts(dataset, domain=domain))
    return output.getvalue()


def test_it_says_who_scored_how_fast(scored: Path, says: Says) -> None:
    text = printed(scored)
    (line,) = [line.split() for line in text.splitlines() if line.split()[:2] == ["NVIDIA", "H200"]]
    # 58 targets in three parts, by three ranks that took half a second each.
    assert line[2:] == ["1", "3", "3", "58", "1.5", "s", "39", "0.0078%"]
    says(below_the_title(text))


def test_documents_are_shown_on_one_line_each(scored: Path) -> None:
    lines = [line.split() for line in printed(scored).splitlines()]
    assert ["train/a", "hardest", "5.625", "10", "2", "2", "qrstuvwxyz"] in lines
    assert ["train/b", "easiest", "0.875", "8", "0", "0", "zyxwvuts"] in lines
    assert ["0.625", "6", "4", "0", "ab⇥", "cd↵"] in [line[-6:] for line in lines]


def test_one_domain_is_shown_with_all_of_its_documents(scored: Path) -> None:
    of_many, alone = printed(scored), printed(scored, "a")
    counts = {text: (of_many.count(text), alone.count(text)) for text in ("ab⇥", "abcdefghijkl", "é𝄞", "mnop")}
    assert counts == {"ab⇥": (1, 2), "abcdefghijkl": (1, 2), "é𝄞": (2, 2), "mnop": (1, 2)}


def test_without_a_summary_it_says_nothing_of_it(scored: Path, says: Says) -> None:
    (scored / "scores.json").unlink()
    text = printed(scored)
    says(below_the_title(text))
    assert "GFLOP" not in text


def test_names_are_no_markup(scored: Path) -> None:
    summary = (scored / "scores.json").read_text()
    (scored / "scores.json").write_text(summary.replace("NVIDIA H200", "[/x]"))
    assert "[/x]" in printed(scored)


def test_numbers_stay_whole_where_there_is_little_room(scored: Path) -> None:
    for width in (80, 40):
        assert re.search(r" 5\.625 +10 +2 +2 ", printed(scored, width=width))


def test_bars_are_as_high_as_their_counts() -> None:
    assert list(_bars([24, 12, 8, 1, 0])) == ["█    ", "█▄   ", "███▁ "]
    assert list(_bars([100_000, 1, 0])) == ["█  ", "█  ", "█▁ "], "what there is shows"


def test_marks_stand_where_a_bin_begins() -> None:
    axis = _axis()
    assert len(axis) <= len(LOSS_BIN_EDGES) + 1
    for mark in ("|0.25", "|1", "|4", "|16"):
        assert LOSS_BIN_EDGES[axis.index(mark) - 1] == float(mark[1:])


@pytest.mark.parametrize(
    ("count", "text"), [(43_008, "43 kFLOP"), (2.65e6, "2.65 MFLOP"), (15.3e9, "15.3 GFLOP"), (2e12, "2 TFLOP")]
)
def test_operations(count: float, text: str) -> None:
    assert operations(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (185.2, "3 min 05 s"),
        (3_599.7, "1 h 00 min"),
        (3_720, "1 h 02 min"),
        (98_049, "27 h 14 min"),
        (4_000_000, "1,111 h 07 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
