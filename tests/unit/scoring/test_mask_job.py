"""The masked dataset: the same rows, a sixteenth of the bytes of a loss, made part by part."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from megaslm.dataset.index import merge_index
from megaslm.dataset.manifest import Manifest, Mask, Part, read_manifest, write_manifest
from megaslm.dataset.rows import RowReader, Rows, unpack_mask
from megaslm.errors import DataError, Stopped
from megaslm.inspect.dataset_facts import dataset_facts
from megaslm.inspect.row_text import read_row
from megaslm.inspect.verify import verify
from megaslm.scoring import mask_job
from megaslm.scoring.mask import mask_rule, selected_targets
from megaslm.scoring.mask_job import MaskRequest, mask
from tests.inspected import EOS_ID, SEQ_LEN, make_inspected
from tests.messages import Says
from tests.watched import Watched

RULE = mask_rule("reference_and_entropy", "0.6", 5.0)
ROWS = {"a": 6, "b": 3}


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    return make_inspected(tmp_path / "scored", scored=True).folder


def parts_of(manifest: Manifest) -> list[Part]:
    return [part for share in manifest.splits["train"].values() for part in share.parts]


def test_rows_are_the_same_and_bits_are_those_of_the_rule(scored: Path, tmp_path: Path) -> None:
    masked = tmp_path / "masked"
    seen = Watched()
    manifest = mask(MaskRequest(scored, masked, RULE, workers=2), seen)
    assert (manifest, manifest.kind, manifest.mask) == (read_manifest(masked), "masked", RULE)
    assert manifest.tokens_fingerprint() == read_manifest(scored).tokens_fingerprint()
    assert (verify(masked).problems, verify(masked).warnings) == ((), ())
    rows = sum(part.rows for part in parts_of(read_manifest(scored)))
    assert (seen.shown[-1].done, seen.shown[-1].total) == (rows, rows)
    for domain, count in ROWS.items():
        theirs, ours = (RowReader(dataset, "train", domain).rows(0, count) for dataset in (scored, masked))
        assert set(ours) == {"tokens", "domain", "selected"}
        assert np.array_equal(ours["tokens"], theirs["tokens"])
        assert np.array_equal(ours["domain"], theirs["domain"])
        expected = selected_targets(RULE, theirs, EOS_ID)
        assert np.array_equal(unpack_mask(ours["selected"].astype(np.uint8), SEQ_LEN), expected)
        assert 16 * ours["selected"].nbytes == theirs["ref_loss"].nbytes
        row = read_row(masked, "train", 1, domain)
        assert row.selected == (False, *expected[1].tolist())
        (share,) = dataset_facts(masked, "train", domain).shares
        assert share.selected_share == expected.sum() / share.targets


def test_the_number_of_threads_makes_no_difference(scored: Path, tmp_path: Path) -> None:
    one = mask(MaskRequest(scored, tmp_path / "one", RULE, workers=1))
    assert mask(MaskRequest(scored, tmp_path / "four", RULE, workers=4)) == one


def test_a_finished_one_is_left_alone_and_another_rule_is_refused(scored: Path, tmp_path: Path) -> None:
    masked = tmp_path / "masked"
    manifest = mask(MaskRequest(scored, masked, RULE))
    written = (masked / "manifest.json").stat().st_mtime_ns
    assert mask(MaskRequest(scored, masked, RULE)) == manifest
    assert (masked / "manifest.json").stat().st_mtime_ns == written
    with pytest.raises(DataError, match=r"mask\.keep_ratio = 0\.6 there, 0\.5 here"):
        mask(MaskRequest(scored, masked, mask_rule("reference_and_entropy", "0.5", 5.0)))


def test_a_corrupt_part_stops_it_and_the_others_are_kept(scored: Path, tmp_path: Path, says: Says) -> None:
    masked = tmp_path / "masked"
    shard = next((scored / "train" / "b" / "part-00000").glob("*.mds"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError) as refused:
        mask(MaskRequest(scored, masked, RULE, workers=1))
    says(refused, "train/b/part-00000/shard.00000.mds", "xxh3_64")
    assert not (masked / "manifest.json").exists()
    done = next(masked.rglob("a/part-00000/*.mds"))
    inode = done.stat().st_ino

    shard.write_bytes(content)
    mask(MaskRequest(scored, masked, RULE, workers=1))
    assert next(masked.rglob("a/part-00000/*.mds")).stat().st_ino == inode
    assert (verify(masked).problems, verify(masked).warnings) == ((), ())


def test_it_stops_when_told_to_and_resumes(
    scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    masked = tmp_path / "masked"
    calls: list[int] = []

    def select(rule: Mask, rows: Rows, eos_id: int) -> NDArray[np.bool_]:
        calls.append(len(rows))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            # The signal is noted by the main thread, once it gets its turn.
            time.sleep(0.5)
        return selected_targets(rule, rows, eos_id)

    monkeypatch.setattr(mask_job, "selected_targets", select)
    with pytest.raises(Stopped) as refused:
        mask(MaskRequest(scored, masked, RULE, workers=1))
    says(refused, "SIGTERM")
    assert len(calls) == 2
    assert not (masked / "manifest.json").exists()
    assert len(list(masked.rglob("*.mds"))) == 2
    again = Watched()
    assert mask(MaskRequest(scored, masked, RULE), again).kind == "masked"
    assert (
        again.shown[-1].counts["rows"]
        < again.shown[-1].total
        == sum(part.rows for part in parts_of(read_manifest(scored)))
    )


def test_a_dataset_that_has_grown_gets_the_bits_of_its_new_parts(scored: Path, tmp_path: Path) -> None:
    whole = read_manifest(scored)
    share = whole.splits["train"]["a"]
    first = share.model_copy(update={"parts": share.parts[:1], "rows": share.parts[0].rows})
    write_manifest(scored, whole.model_copy(update={"splits": {"train": {"a": first}}}))
    (scored / "train" / "a" / "part-00001").rename(tmp_path / "part-00001")
    (scored / "train" / "b").rename(tmp_path / "b")
    merge_index(scored / "train" / "a", first.parts)
    masked = tmp_path / "masked"
    assert len(parts_of(mask(MaskRequest(scored, masked, RULE)))) == 1
    inode = next(masked.rglob("part-00000/*.mds")).stat().st_ino

    (tmp_path / "part-00001").rename(scored / "train" / "a" / "part-00001")
    (tmp_path / "b").rename(scored / "train" / "b")
    merge_index(scored / "train" / "a", share.parts)
    write_manifest(scored, whole)
    assert len(parts_of(mask(MaskRequest(scored, masked, RULE)))) == 3
    assert next((masked / "train" / "a" / "part-00000").glob("*.mds")).stat().st_ino == inode
    assert verify(masked).problems == ()
