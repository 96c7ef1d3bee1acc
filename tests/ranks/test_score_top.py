"""`score --top-logits`: the most likely tokens of the reference, against a float64 softmax over all tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from megaslm.dataset.manifest import read_manifest
from megaslm.dataset.rows import RowReader
from megaslm.dataset.shards import RowFormat
from megaslm.inspect.part_check import RowCheck, RowRules
from megaslm.inspect.verify import verify
from megaslm.scoring import work
from megaslm.scoring.derivation_plan import source_parts
from megaslm.slm.valid_targets import valid_targets
from tests.columns import write_column
from tests.forked_cli import run_megaslm
from tests.messages import Says
from tests.ranks.test_score import PLACES, predictions
from tests.scoring import fail, make_reference, rows_of, run_job, task_of
from tests.toy import EOS_ID, SEQ_LEN, VOCAB_SIZE, make_dataset

TOP = 5
Given = tuple[Path, PreTrainedModel]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """A reference, a dataset, and the dataset scored by one rank in one piece."""
    folder = tmp_path_factory.mktemp("top")
    lm = make_reference(folder / "model")
    make_dataset(folder / "tokens", {("train", "a"): [60, 35], ("train", "b"): [31], ("heldout", "a"): [5]})
    run_job(1, task_of(folder / "model", folder / "tokens", folder / "scored", top_logits=TOP))
    return folder, lm.double()


def test_columns_are_those_of_the_whole_softmax(given: Given) -> None:
    folder, lm = given
    for split, domain in PLACES:
        rows = RowReader(folder / "scored", split, domain)  # type: ignore[arg-type]
        for number in range(len(rows)):
            row = rows[number]
            assert row["ref_top_id"].dtype == row["tokens"].dtype
            assert row["ref_top_logprob"].dtype == np.float16
            valid = valid_targets(row["tokens"][None], EOS_ID)[0]
            assert not row["ref_top_id"][~valid].any()
            assert not row["ref_top_logprob"][~valid].any()
            for place, of_all in predictions(lm, row["tokens"]):
                expected, ids = of_all.topk(TOP)
                assert row["ref_top_id"][place].tolist() == ids.tolist()
                rest = of_all.exp().index_fill(0, ids, 0.0).sum().log()
                stored = row["ref_top_logprob"][place].astype(np.float64)
                np.testing.assert_allclose(stored, [*expected, rest], rtol=6e-4, atol=1e-5)


def test_columns_are_equal_bytes_for_any_number_of_ranks_and_ranges(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = given
    monkeypatch.setattr(work, "_LEAST_TARGETS", 8 * SEQ_LEN)
    largest = next(item for item in source_parts(read_manifest(folder / "tokens")) if item.part.rows == 60)
    assert len(work.ranges_of(largest, SEQ_LEN, 4, "")) > 1
    for ranks in (1, 2):
        task = task_of(folder / "model", folder / "tokens", tmp_path / str(ranks), top_logits=TOP)
        run_job(ranks, task)
        assert rows_of(tmp_path / str(ranks)) == rows_of(folder / "scored")


def test_losses_are_those_without_the_columns(given: Given, tmp_path: Path) -> None:
    folder, _ = given
    run_job(1, task_of(folder / "model", folder / "tokens", tmp_path / "plain"))
    for split, domain in PLACES:
        with_top, plain = (RowReader(path, split, domain) for path in (folder / "scored", tmp_path / "plain"))  # type: ignore[arg-type]
        losses = [reader.rows(0, len(reader))["ref_loss"].astype(np.float32) for reader in (with_top, plain)]
        np.testing.assert_allclose(*losses, rtol=1e-3, atol=1e-5)


def test_a_row_in_windows_has_the_top_of_each_targets_window(given: Given, tmp_path: Path) -> None:
    folder, lm = given
    window, stride = SEQ_LEN // 2, SEQ_LEN // 4
    settings = {"top_logits": TOP, "window": window, "stride": stride, "document_isolation": False}
    run_job(1, task_of(folder / "model", folder / "tokens", tmp_path / "scored", **settings))
    row = RowReader(tmp_path / "scored", "train", "a")[0]
    tokens = torch.from_numpy(row["tokens"].astype(np.int64))
    valid = valid_targets(row["tokens"][None], EOS_ID)[0]
    with torch.no_grad():
        last = lm(tokens[None, SEQ_LEN - window : SEQ_LEN]).logits[0, -1].log_softmax(0)
    assert valid[-1]
    assert row["ref_top_id"][-1].tolist() == last.topk(TOP).indices.tolist()


def test_attach_keeps_the_columns_and_mask_leaves_them_out(given: Given, tmp_path: Path) -> None:
    folder, _ = given
    scored, attached, masked = folder / "scored", tmp_path / "attached", tmp_path / "masked"
    column = write_column(tmp_path / "column.parquet", scored, {"row": [0], "position": [3], "value": [2.0]})
    run_megaslm("attach", scored, column, "--as", "weight", "--out", attached)
    run_megaslm("mask", scored, masked, "--criterion", "reference", "--keep-ratio", "0.5")
    for split, domain in PLACES:
        ours, theirs, others = (RowReader(path, split, domain)[2] for path in (attached, scored, masked))  # type: ignore[arg-type]
        for name in ("ref_top_id", "ref_top_logprob"):
            assert np.array_equal(ours[name], theirs[name])
            assert name not in others
    assert verify(attached).problems == verify(masked).problems == ()


def test_verify_reads_the_columns(given: Given) -> None:
    folder, _ = given
    assert verify(folder / "scored").problems == ()
    form = RowFormat(SEQ_LEN, VOCAB_SIZE, scored=True, top_logits=TOP)
    assert RowFormat.of(read_manifest(folder / "scored")) == form
    shapes = {name: kind.split(":")[1:] for name, kind in form.columns.items() if name != "domain"}
    fields = [(name, kind, tuple(map(int, shape.split(",")))) for name, (kind, shape) in shapes.items()]
    rows = np.zeros(1, [*fields, ("domain", np.uint16)])
    rows["tokens"][:] = EOS_ID + 1
    faults = {
        "ref_top_id": VOCAB_SIZE,
        "ref_top_logprob": np.nan,
    }
    for name, wrong in faults.items():
        check, changed = RowCheck(RowRules(form, 0, EOS_ID)), rows.copy()
        assert list(check.add(folder, changed.copy())) == []
        changed[name][0, 3, 2] = wrong
        [found] = check.add(folder, changed)
        assert name in found.finding


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"top_logits": VOCAB_SIZE}, (f"--top-logits {VOCAB_SIZE}", str(VOCAB_SIZE))),
        ({"top_logits": TOP, "align": True}, (f"--top-logits {TOP}", "--align")),
    ],
    ids=["all that there are", "aligned"],
)
def test_what_has_no_meaning_is_refused(
    given: Given,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    says: Says,
    settings: dict[str, int],
    parts: tuple[str, ...],
) -> None:
    folder, _ = given
    says(fail(1, task_of(folder / "model", folder / "tokens", tmp_path / "out", **settings), 2, capfd), *parts)
    assert not (tmp_path / "out").exists()
