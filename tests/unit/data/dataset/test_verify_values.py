"""Values that no row may hold are found, though every hash is right."""

from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest

from megaslm.data.dataset import row_check
from megaslm.data.dataset.shards import RowFormat
from tests.toy import EOS_ID, VOCAB_SIZE
from tests.verified import FORMATS, SEQ_LEN, Change, found_in, make


def put(row: int, place: int, *, token: int | None = None, loss: float | None = None) -> Change:
    def change(tokens: np.ndarray, losses: np.ndarray) -> None:
        if token is not None:
            tokens[row, place] = token
        if loss is not None:
            losses[row, place] = loss

    return change


def fill_losses(value: float) -> Change:
    def change(tokens: np.ndarray, losses: np.ndarray) -> None:
        losses[3:5] = np.where(tokens[3:5, :-1] == EOS_ID, 0, value)

    return change


def losses_after_eos(tokens: np.ndarray, losses: np.ndarray) -> None:
    losses[tokens[:, :-1] == EOS_ID] = 2.5


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (put(7, 12, token=64), "row 7 token id 64 at place 12, expected an id below 64"),
        (put(7, 0, loss=np.nan), "row 7 ref_loss nan at place 0, expected 0 to 65504"),
        (put(7, 11, loss=np.inf), "row 7 ref_loss inf at place 11, expected 0 to 65504"),
        (put(7, 3, loss=-0.5), "row 7 ref_loss -0.5 at place 3, expected 0 to 65504"),
        (fill_losses(np.inf), "row 3 ref_loss inf at place *, expected 0 to 65504; 1 more of its rows are like that"),
        (losses_after_eos, "row * ref_loss after EOS 2.5 at place *, expected 0*"),
    ],
)
def test_values_that_may_not_be_are_found(tmp_path: Path, spoil: Change, expected: str) -> None:
    """All hashes are right: the part was written so."""
    make(tmp_path, RowFormat(SEQ_LEN, VOCAB_SIZE, scored=True, shard_bytes=100_000), spoil=spoil)
    problems = [problem for problem in found_in(tmp_path) if not problem.startswith("manifest.json")]
    assert len(problems) == 1, problems
    assert fnmatchcase(problems[0], f"train/b/part-00001/shard.00000.mds has in {expected}"), problems


@pytest.mark.parametrize(
    ("spoil", "more_bits", "expected"),
    [
        (losses_after_eos, 0, "row * a bit of selected 1 at place *, expected 0, as there is no target*"),
        (None, 0b1000_0000, "row 7 a bit of selected 1 at place 15, expected 0, as there is no target"),
    ],
)
def test_only_targets_may_be_selected(tmp_path: Path, spoil: Change | None, more_bits: int, expected: str) -> None:
    masked = RowFormat(SEQ_LEN, VOCAB_SIZE, masked=True, shard_bytes=100_000)
    make(tmp_path, masked, spoil=spoil, more_bits=more_bits)
    (problem,) = found_in(tmp_path)
    assert fnmatchcase(problem, f"train/b/part-00001/shard.00000.mds has in {expected}"), problem


def test_rows_are_counted_over_the_stretches_that_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_check, "_CHUNK_BYTES", 100)
    make(tmp_path, RowFormat(SEQ_LEN, VOCAB_SIZE, scored=True, shard_bytes=100_000), spoil=fill_losses(-1))
    (problem,) = found_in(tmp_path)
    assert "has in row 3 ref_loss -1.0 at place" in problem
    assert problem.endswith("; 1 more of its rows are like that")


def test_the_smallest_and_the_largest_loss_pass(tmp_path: Path) -> None:
    make(tmp_path / "large", FORMATS["scored"], spoil=fill_losses(65504))
    make(tmp_path / "zero", FORMATS["scored"], spoil=fill_losses(-0.0))
    assert found_in(tmp_path / "large") == found_in(tmp_path / "zero") == []


def test_rows_of_another_domain_are_found(tmp_path: Path) -> None:
    make(tmp_path, RowFormat(SEQ_LEN, VOCAB_SIZE, shard_bytes=100_000), domain=0)
    assert found_in(tmp_path) == [
        "train/b/part-00001/shard.00000.mds has in row 0 domain 0 at place 0, expected 1; "
        "19 more of its rows are like that"
    ]
