"""What a mask stores of scored rows, and which rules and datasets are refused."""

from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from megaslm.dataset.manifest import Mask, read_manifest
from megaslm.dataset.remote import DatasetFolder
from megaslm.errors import ConfigError, DataError
from megaslm.scoring.mask import describe_masked, mask_rule, selected_targets
from tests.inspected import make_inspected
from tests.messages import Says
from tests.small_shards import FORMATS, make

EOS_ID = 2


def rows_of(losses: list[list[float]], tokens: list[list[int]] | None = None) -> dict[str, np.ndarray]:
    """Rows without EOS unless tokens are given; entropies run the other way."""
    ref_loss = np.array(losses, dtype=np.float16)
    plain = np.full((len(losses), ref_loss.shape[1] + 1), 9)
    given = plain if tokens is None else np.array(tokens)
    return {"tokens": given.astype(np.uint16), "ref_loss": ref_loss, "ref_entropy": ref_loss.max() - ref_loss}


def places(rule: Mask, rows: dict[str, np.ndarray]) -> list[list[int]]:
    return [np.flatnonzero(row).tolist() for row in selected_targets(rule, rows, EOS_ID)]


def test_each_row_keeps_its_smallest_losses_and_of_equal_ones_the_first() -> None:
    rows = rows_of([[5, 1, 4, 2, 3], [7, 7, 7, 7, 7], [0, 9, 0, 9, 0]])
    assert places(mask_rule("reference", "0.6", None), rows) == [[1, 3, 4], [0, 1, 2], [0, 2, 4]]
    assert places(mask_rule("entropy", "0.2", None), rows) == [[0], [0], [1]]


def test_k_counts_valid_targets_and_none_that_follows_eos() -> None:
    tokens = [[9, EOS_ID, 9, 9, EOS_ID, EOS_ID], [EOS_ID] * 6]
    rows = rows_of([[4, 0, 3, 2, 0], [0, 0, 0, 0, 0]], tokens)
    assert places(mask_rule("reference", "1", None), rows) == [[0, 2, 3], []]
    # K = ⌊0.5 · 3 + ½⌋.
    assert places(mask_rule("reference", "0.5", None), rows) == [[2, 3], []]


def test_a_cap_leaves_fewer_than_k() -> None:
    rows = rows_of([[5, 1, 4, 2, 3]])
    assert places(mask_rule("reference", "0.8", 2.0), rows) == [[1, 3]]
    assert places(mask_rule("entropy", "0.8", 2.0), rows) == [[1, 3]]


def test_the_intersection_is_in_both_tops() -> None:
    rows = rows_of([[1, 2, 3, 4, 5]])
    assert places(mask_rule("reference_and_entropy", "0.6", None), rows) == [[2]]


def test_what_cannot_be_ranked_is_refused(says: Says) -> None:
    rows = rows_of([[1, 2, 3], [1, np.nan, 3]])
    with pytest.raises(DataError) as refused:
        selected_targets(mask_rule("reference", "0.5", None), rows, EOS_ID)
    says(refused, "row 1", "ref_loss", "ref_entropy")


def test_the_ratio_is_kept_as_it_was_written() -> None:
    rule = mask_rule("reference", "0.1", 3.5)
    assert rule.keep_ratio == Decimal("0.1")
    assert Mask.model_validate_json(rule.model_dump_json()) == rule
    # As masks were written before the setting got its name.
    assert Mask.model_validate_json(rule.model_dump_json().replace('"criterion"', '"score"')) == rule


@pytest.mark.parametrize("ratio", ["0", "1.01", "-0.5", "0.1234567891", "most", "nan"])
def test_a_ratio_outside_is_refused(ratio: str) -> None:
    with pytest.raises(ConfigError, match=f"^--keep-ratio {ratio}: "):
        mask_rule("reference", ratio, None)


def test_what_a_ratio_is_is_told(says: Says) -> None:
    with pytest.raises(ConfigError) as refused:
        mask_rule("reference", "1.01", None)
    says(refused, "--keep-ratio 1.01")


@pytest.mark.parametrize("cap", [0.0, -1.0, float("inf"), float("nan")])
def test_a_cap_outside_is_refused_with_all_else_that_is_wrong(cap: float) -> None:
    with pytest.raises(ConfigError) as error:
        mask_rule("reference", "2", cap)
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        "--keep-ratio 2",
        f"--max-ref-loss {cap}",
    ]


def test_a_dataset_that_lacks_what_is_ranked_is_refused(tmp_path: Path, says: Says) -> None:
    for name in ("narrow", "scored", "masked"):
        make(tmp_path / name, FORMATS[name])

    def describe(name: str, score: str) -> None:
        describe_masked(read_manifest(tmp_path / name), DatasetFolder(tmp_path / name), mask_rule(score, "0.6", None))

    with pytest.raises(DataError) as refused:
        describe("narrow", "reference")
    says(refused, "narrow", "ref_loss", "'tokens'")
    with pytest.raises(DataError) as refused:
        describe("masked", "reference")
    says(refused, "masked", "ref_loss", "'masked'")
    describe("scored", "reference")
    with pytest.raises(DataError) as refused:
        describe("scored", "entropy")
    says(refused, "scored", "ref_entropy", "--criterion entropy", "score --entropy")


def test_the_manifest_says_by_whom_and_how(tmp_path: Path) -> None:
    scored = read_manifest(make_inspected(tmp_path, scored=True).folder)
    rule = mask_rule("entropy", "0.25", 4.0)
    described = describe_masked(scored, DatasetFolder(tmp_path), rule)
    assert (described.kind, described.mask, described.reference) == ("masked", rule, scored.reference)
    assert described.tokens_fingerprint() == scored.tokens_fingerprint()
