"""The layout of a checkpoint: which rank's files hold what."""

from dataclasses import replace
from pathlib import Path

import pytest

from megaslm.engine.training_state import Fragment
from megaslm.errors import CheckpointError
from megaslm.training.checkpoints.layout import LAYOUT, Layout, StoredParameter, Stretch, read_layout
from tests.messages import Says


def fragment(name: str, shape: tuple[int, ...], start: int, count: int) -> Fragment:
    return Fragment(name, shape, start, count, flat=0, offset=0)


def test_stretches_are_put_in_order_and_read_back(tmp_path: Path) -> None:
    ranks = [
        [fragment("w", (2, 5), 5, 5), fragment("g", (3,), 0, 2)],
        [fragment("w", (2, 5), 0, 5)],
        [fragment("g", (3,), 2, 1)],
    ]
    layout = replace(Layout.of(ranks), adam_steps=7)
    assert layout.parameters == {
        "w": StoredParameter((2, 5), (Stretch(1, 0, 5), Stretch(0, 5, 5))),
        "g": StoredParameter((3,), (Stretch(0, 0, 2), Stretch(2, 2, 1))),
    }
    assert [layout.written_by(rank) for rank in range(3)] == [{"w", "g"}, {"w"}, {"g"}]
    (tmp_path / LAYOUT).write_text(layout.as_json())
    assert read_layout(tmp_path) == layout


def test_what_all_ranks_hold_the_first_one_writes() -> None:
    layout = Layout.of([[fragment("w", (4,), 0, 4)]] * 3)
    assert [layout.written_by(rank) for rank in range(3)] == [{"w"}, set(), set()]


@pytest.mark.parametrize("held", [(0, 3), (1, 4)])
def test_a_parameter_that_is_not_whole_is_not_saved(held: tuple[int, int], says: Says) -> None:
    start, end = held
    with pytest.raises(CheckpointError) as refused:
        Layout.of([[fragment("w", (2, 2), start, end - start)]])
    says(refused, "w", "4")


def test_a_checkpoint_of_another_version_is_refused_by_name(tmp_path: Path, says: Says) -> None:
    (tmp_path / LAYOUT).write_text('{"format": 2}')
    with pytest.raises(CheckpointError) as refused:
        read_layout(tmp_path)
    says(refused, tmp_path, "2", "1")
