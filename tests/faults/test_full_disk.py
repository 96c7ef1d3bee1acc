"""A disk that is full: where checkpoints lie, and where the log does."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from megaslm.training.checkpoints.store import complete_checkpoints, find_damage
from tests.faults.figures import Figures
from tests.faults.runs import Material, records, run_ranks, start_ranks, tokens_of, weights_sha256
from tests.forks import statuses_of, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system of limited size"),
]


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[None]:
    """Within the context `folder` is a file system of its own, with so much room."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """Takes all the room that there is, by a file."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            return filler


def bytes_beside(checkpoints: Path, kept: Path) -> int:
    """The bytes in a folder of checkpoints that do not belong to one of them."""
    return sum(
        path.stat().st_size for path in checkpoints.rglob("*") if path.is_file() and not path.is_relative_to(kept)
    )


def test_no_room_for_a_checkpoint(
    material: Material, undisturbed: str, figures: Figures, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = material.config(tmp_path / "run", checkpoint={"every_tokens": tokens_of(2), "max_failed_saves": 3})
    checkpoints = tmp_path / "run" / "checkpoints"
    with small_disk(checkpoints, kib=450):
        assert run_ranks(config) == [1, 1]
        said = capfd.readouterr()
        (kept,) = complete_checkpoints(checkpoints)
        assert kept.step == 2
        assert find_damage(kept.folder) == []
        left = bytes_beside(checkpoints, kept.folder)
        assert left == 0
        assert said.out.count("the checkpoint could not be written") == 2
        assert "No space left on device" in said.out
        assert "3 in a row have failed" in said.err
        assert [record["step"] for record in records(config)] == list(range(1, 9))
        subprocess.run(["mount", "-o", "remount,size=64m", checkpoints], check=True)
        assert run_ranks(config) == [0, 0]
        assert weights_sha256(config) == undisturbed
    figures.record("full_disk", failed_saves=3, steps_made_meanwhile=6, bytes_left=left)


def test_no_room_for_the_log(
    material: Material, figures: Figures, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    steps = 60
    config = material.config(tmp_path / "run", steps=steps, checkpoint={"every_tokens": tokens_of(steps)})
    with small_disk(tmp_path / "run", kib=8 * 1024):
        ranks = start_ranks(config)
        wait_until(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and len(records(config)) >= 4)
        filler = fill(tmp_path / "run")
        written = len(records(config))
        said = ""

        def is_noticed() -> bool:
            nonlocal said
            said += "".join(capfd.readouterr())
            return "No space left on device" in said

        wait_until(is_noticed)
        filler.unlink()
        assert statuses_of(ranks) == [0, 0]
        assert "metrics.jsonl" in said
        assert written < steps
        assert [record["step"] for record in records(config)] == list(range(1, steps + 1))
    figures.record("full_disk", log_lines_lost=0)
