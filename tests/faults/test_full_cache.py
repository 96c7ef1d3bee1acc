"""A disk that is full where a remote dataset is kept: the run ends, says so, and continues once there is room."""

import errno
import os
import re
import time
from pathlib import Path

import pytest

from megaslm.config.schema import RunConfig
from megaslm.training.checkpoints.store import complete_checkpoints, find_corruption
from tests.faults.figures import Figures
from tests.faults.runs import STEPS, Material, run_ranks, upload, weights_sha256
from tests.faults.small_disk import fill, small_disk
from tests.s3 import Bucket

pytest.importorskip("s3fs")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system of limited size"),
]
# A full disk may be emptied: it is tried again as often as a store that does not answer.
RETRIES = 2
ENDED_WITHIN_SECONDS = 60


def remote(material: Material, run_dir: Path, url: str, cache: Path, *, steps: int = STEPS) -> RunConfig:
    return material.config(
        run_dir, steps=steps, data={"train": url, "fetch": {"cache": str(cache), "retries": RETRIES}}
    )


def test_no_room_for_a_shard(
    material: Material,
    undisturbed: str,
    s3: Bucket,
    figures: Figures,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    url, cache, run_dir = upload(material.scored, s3), tmp_path / "cache", tmp_path / "run"
    with small_disk(cache, kib=8 * 1024):
        assert run_ranks(remote(material, run_dir, url, cache, steps=STEPS // 2)) == [0, 0]
        for shard in cache.rglob("*.mds*"):
            shard.unlink()
        filler = fill(cache)
        capfd.readouterr()
        config = remote(material, run_dir, url, cache)
        began = time.monotonic()
        assert run_ranks(config) == [2, 2]
        seconds = time.monotonic() - began
        said = capfd.readouterr().err
        assert re.search(rf"scored/train/\S+\.mds\S* \(rows \d+ to \d+\).* {os.strerror(errno.ENOSPC)}", said), said
        assert "Traceback" not in said
        assert seconds < ENDED_WITHIN_SECONDS
        (kept,) = complete_checkpoints(run_dir / "checkpoints")
        assert kept.step == STEPS // 2
        assert find_corruption(kept.folder) == []
        filler.unlink()
        assert run_ranks(config) == [0, 0]
        assert weights_sha256(config) == undisturbed
    figures.record("full_disk", cache_seconds=seconds)


def test_no_room_for_the_description_of_a_dataset(
    material: Material, s3: Bucket, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    url, cache = upload(material.scored, s3), tmp_path / "cache"
    with small_disk(cache, kib=256):
        fill(cache)
        assert run_ranks(remote(material, tmp_path / "run", url, cache)) == [2, 2]
    said = capfd.readouterr().err
    assert os.strerror(errno.ENOSPC) in said
    assert "Traceback" not in said
