"""Killed at ten points of a save: the newest checkpoint that is whole is used, and nothing half written is left."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megaslm.config.schema import RunConfig
from megaslm.data.durable import UNFINISHED
from megaslm.training.checkpoints.store import complete_checkpoints, find_damage
from tests.faults.figures import Figures
from tests.faults.runs import STEPS, Material, run_ranks, start_ranks, weights_sha256
from tests.forks import statuses_of

POINTS = 10
_FILE_WORK = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def on_file_work(checkpoints: Path, step: int, call: Callable[[], object]) -> None:
    """Calls `call` before everything that this process does with files of that step's checkpoint."""
    folder = f"step-{step:08d}"

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in _FILE_WORK and str(arguments[0]).startswith(str(checkpoints)) and folder in str(arguments[0]):
            call()

    sys.addaudithook(hook)


def file_work_of_a_save(config: RunConfig, counted: Path) -> int:
    """How many things the first rank does with files in a save that comes to its end."""

    def count() -> None:
        descriptor = os.open(counted, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, b".")
        os.close(descriptor)

    checkpoints = Path(config.run_dir) / "checkpoints"
    ranks = start_ranks(config, before=lambda: on_first_rank_only(lambda: on_file_work(checkpoints, STEPS, count)))
    assert statuses_of(ranks) == [0, 0]
    return counted.stat().st_size


def kill_before(config: RunConfig, number: int) -> None:
    """Runs until the first rank, in the last save, is about to do its `number`-th thing with files."""
    left = iter(range(number))

    def count() -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints = Path(config.run_dir) / "checkpoints"
    ranks = start_ranks(config, before=lambda: on_first_rank_only(lambda: on_file_work(checkpoints, STEPS, count)))
    assert statuses_of(ranks) == [-signal.SIGKILL, 1]


def on_first_rank_only(action: Callable[[], object]) -> None:
    if os.environ["RANK"] == "0":
        action()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_ten_points_of_a_save(material: Material, undisturbed: str, figures: Figures, tmp_path: Path) -> None:
    half = material.config(tmp_path / "half", steps=STEPS // 2)
    assert run_ranks(half) == [0, 0]

    def second_half(name: str) -> RunConfig:
        return material.config(Path(shutil.copytree(half.run_dir, tmp_path / name)))

    work = file_work_of_a_save(second_half("whole"), tmp_path / "counted")
    assert work > 2 * POINTS
    used = 0
    for point in range(POINTS):
        config = second_half(f"cut-{point}")
        kill_before(config, round(work * point / (POINTS - 1)) - (point == POINTS - 1))
        *_, newest = complete_checkpoints(Path(config.run_dir) / "checkpoints")
        assert find_damage(newest.folder) == []
        assert run_ranks(config) == [0, 0]
        assert weights_sha256(config) == undisturbed
        assert not list((Path(config.run_dir) / "checkpoints").glob(f"{UNFINISHED}*"))
        used += 1
    figures.record("cut_off_save", points=POINTS, newest_whole_one_used=used)
