"""Values that no row may hold are found, though every hash is right."""

from pathlib import Path

import numpy as np
import pytest

from megaslm.dataset.shards import RowFormat
from megaslm.inspect import part_check
from tests.messages import Says
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
    ("spoil", "row"),
    [
        (put(7, 12, token=64), "row 7"),
        (put(7, 0, loss=np.nan), "row 7"),
        (put(7, 11, loss=np.inf), "row 7"),
        (put(7, 3, loss=-0.5), "row 7"),
        (fill_losses(np.inf), "row 3"),
        (losses_after_eos, "row "),
    ],
    ids=["token", "nan", "infinite", "negative", "several", "after EOS"],
)
def test_values_that_may_not_be_are_found(tmp_path: Path, spoil: Change, row: str, says: Says) -> None:
    """All hashes are right: the part was written so."""
    make(tmp_path, RowFormat(SEQ_LEN, VOCAB_SIZE, scored=True, shard_bytes=100_000), spoil=spoil)
    (problem,) = (problem for problem in found_in(tmp_path) if not problem.startswith("manifest.json"))
    says(problem, "train/b/part-00001/shard.00000.mds", row)


@pytest.mark.parametrize(
    ("spoil", "more_bits", "row"),
    [(losses_after_eos, 0, "row "), (None, 0b1000_0000, "row 7")],
    ids=["after EOS", "padded"],
)
def test_only_targets_may_be_selected(
    tmp_path: Path, spoil: Change | None, more_bits: int, row: str, says: Says
) -> None:
    masked = RowFormat(SEQ_LEN, VOCAB_SIZE, masked=True, shard_bytes=100_000)
    make(tmp_path, masked, spoil=spoil, more_bits=more_bits)
    (problem,) = found_in(tmp_path)
    says(problem, "train/b/part-00001/shard.00000.mds", row)


@pytest.mark.parametrize(
    ("spoil", "row"),
    [(put(7, 0, loss=np.nan), "row 7"), (put(7, 11, loss=np.inf), "row 7"), (losses_after_eos, "row ")],
    ids=["nan", "infinite", "after EOS"],
)
def test_weights_are_finite_and_belong_to_targets(tmp_path: Path, spoil: Change, row: str, says: Says) -> None:
    make(tmp_path, RowFormat(SEQ_LEN, VOCAB_SIZE, weighted=True, shard_bytes=100_000), spoil=spoil)
    (problem,) = found_in(tmp_path)
    says(problem, "train/b/part-00001/shard.00000.mds", row)


def twos(tokens: np.ndarray, target_mask: np.ndarray) -> None:
    target_mask[7, 4] = 2


def ones_after_eos(tokens: np.ndarray, target_mask: np.ndarray) -> None:
    target_mask[tokens[:, :-1] == EOS_ID] = 1


def losses_at_excluded_targets(tokens: np.ndarray, losses: np.ndarray) -> None:
    losses[7, 3] = 2.5


@pytest.mark.parametrize("spoil_mask", [twos, ones_after_eos])
def test_a_target_mask_only_leaves_targets(tmp_path: Path, spoil_mask: Change, says: Says) -> None:
    make(tmp_path, RowFormat(SEQ_LEN, VOCAB_SIZE, target_mask=True, shard_bytes=100_000), spoil_mask=spoil_mask)
    problem, *counts = found_in(tmp_path)
    says(problem, "train/b/part-00001/shard.00000.mds", "target_mask")
    assert all(count.startswith("manifest.json") for count in counts)


def test_excluded_targets_have_no_loss(tmp_path: Path, says: Says) -> None:
    row_format = RowFormat(SEQ_LEN, VOCAB_SIZE, scored=True, target_mask=True, shard_bytes=100_000)
    make(tmp_path, row_format, spoil=losses_at_excluded_targets)
    (problem,) = found_in(tmp_path)
    says(problem, "row 7", "ref_loss")


def test_rows_are_counted_over_the_stretches_that_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    monkeypatch.setattr(part_check, "_CHUNK_BYTES", 100)
    make(tmp_path, RowFormat(SEQ_LEN, VOCAB_SIZE, scored=True, shard_bytes=100_000), spoil=fill_losses(-1))
    (problem,) = found_in(tmp_path)
    says(problem, "row 3", "ref_loss -1.0")


def test_the_smallest_and_the_largest_loss_pass(tmp_path: Path) -> None:
    make(tmp_path / "large", FORMATS["scored"], spoil=fill_losses(65504))
    make(tmp_path / "zero", FORMATS["scored"], spoil=fill_losses(-0.0))
    assert found_in(tmp_path / "large") == found_in(tmp_path / "zero") == []


def test_rows_of_another_domain_are_found(tmp_path: Path, says: Says) -> None:
    make(tmp_path, RowFormat(SEQ_LEN, VOCAB_SIZE, shard_bytes=100_000), domain=0)
    (problem,) = found_in(tmp_path)
    says(problem, "train/b/part-00001/shard.00000.mds", "row 0", "domain 0", "19")
