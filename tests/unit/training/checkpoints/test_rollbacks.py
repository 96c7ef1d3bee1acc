"""The data position of a run that has rolled back, by what its folder has of it."""

from pathlib import Path

import pytest

from megaslm.errors import CheckpointError
from megaslm.stream.order import Extent
from megaslm.training.checkpoints.progress import Progress
from megaslm.training.checkpoints.rollbacks import (
    ROLL_BACKS,
    NotedRollBack,
    read_roll_backs,
    rows_seen_before,
    since_roll_backs,
    write_roll_backs,
)
from tests.messages import Says

BATCH_ROWS = 8


def noted(*roll_backs: tuple[int, int]) -> list[NotedRollBack]:
    """Roll-backs to these checkpoints, behind so many rows."""
    return [NotedRollBack(step, rows_seen, "a spike") for step, rows_seen in roll_backs]


@pytest.mark.parametrize(
    ("roll_backs", "rows_before"),
    [
        ([], {1: 0, 17: 128}),
        ([(16, 144)], {1: 0, 16: 120, 17: 144, 20: 168}),
        ([(16, 144), (16, 152)], {16: 120, 17: 152}),
        ([(12, 120), (16, 200)], {12: 88, 13: 120, 16: 144, 17: 200}),
        # The checkpoint of step 16 was corrupt when the run met the second spike.
        ([(16, 144), (12, 152)], {12: 88, 13: 152, 17: 184}),
    ],
)
def test_each_step_follows_the_last_roll_back_to_before_it(
    roll_backs: list[tuple[int, int]], rows_before: dict[int, int]
) -> None:
    found = {step: rows_seen_before(step, noted(*roll_backs), BATCH_ROWS) for step in rows_before}
    assert found == rows_before


def test_a_checkpoint_resumes_behind_the_rows_of_the_last_roll_back_to_it() -> None:
    longer = (Extent(0, (100,), None), Extent(2, (200,), None))
    roll_backs = [*noted((12, 130), (16, 144)), NotedRollBack(16, 152, "a spike", longer)]
    behind = since_roll_backs(Progress(step=16, rows_seen=128), roll_backs)
    assert (behind.rows_seen, behind.extents) == (152, longer)
    assert since_roll_backs(Progress(step=20, rows_seen=184), roll_backs) == Progress(step=20, rows_seen=184)


def test_a_checkpoint_that_was_written_after_a_later_roll_back_keeps_its_position() -> None:
    roll_backs = noted((16, 144), (12, 152))
    again = Progress(step=16, rows_seen=184)
    assert since_roll_backs(again, roll_backs) == again


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_roll_backs(tmp_path) == []
    roll_backs = [*noted((16, 144)), NotedRollBack(16, 152, "a spike", (Extent(1, (3, 4), (0.5, 0.5)),))]
    write_roll_backs(tmp_path, roll_backs)
    assert read_roll_backs(tmp_path) == roll_backs


def test_a_file_of_an_earlier_build_is_read(tmp_path: Path) -> None:
    """It does not tell how long the data was."""
    (tmp_path / ROLL_BACKS).write_text('[{"checkpoint_step": 16, "rows_seen": 144, "spike": "a spike"}]')
    assert read_roll_backs(tmp_path) == noted((16, 144))


@pytest.mark.parametrize("content", ["[{", "[1]", '[{"checkpoint_step": 16}]'], ids=["cut", "numbers", "fields"])
def test_a_corrupt_file_is_refused_by_name(tmp_path: Path, content: str, says: Says) -> None:
    (tmp_path / ROLL_BACKS).write_text(content)
    with pytest.raises(CheckpointError) as refused:
        read_roll_backs(tmp_path)
    says(refused, tmp_path / ROLL_BACKS)
