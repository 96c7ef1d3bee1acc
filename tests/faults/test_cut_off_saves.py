"""Killed at ten points of a save: the newest checkpoint that is whole is used, and nothing half written is left."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from megaslm.config.schema import RunConfig
from tests.faults.cut_off import on_file_work, resumes_from_a_whole_one
from tests.faults.figures import Figures
from tests.faults.runs import STEPS, Material, run_ranks, start_ranks
from tests.forks import statuses_of

POINTS_OF_A_RANK = (7, 3)


def file_work_of_a_save(config: RunConfig, rank: int, counted: Path) -> int:
    """How many things a rank does with files in a save that comes to its end."""

    def count() -> None:
        descriptor = os.open(counted, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, b".")
        os.close(descriptor)

    checkpoints = Path(config.run_dir) / "checkpoints"
    ranks = start_ranks(config, before=lambda: on_file_work(checkpoints, rank, count))
    assert statuses_of(ranks) == [0, 0]
    return counted.stat().st_size


def kill_before(config: RunConfig, rank: int, number: int) -> None:
    """Runs until a rank, in the last save, is about to do its `number`-th thing with files, counted from 0."""
    left = iter(range(number))

    def count() -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints = Path(config.run_dir) / "checkpoints"
    ranks = start_ranks(config, before=lambda: on_file_work(checkpoints, rank, count))
    assert sorted(statuses_of(ranks)) == [-signal.SIGKILL, 1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_ten_points_of_a_save(material: Material, undisturbed: str, figures: Figures, tmp_path: Path) -> None:
    half = material.config(tmp_path / "half", steps=STEPS // 2)
    assert run_ranks(half) == [0, 0]

    def second_half(name: str) -> RunConfig:
        return material.config(Path(shutil.copytree(half.run_dir, tmp_path / name)))

    used = 0
    for rank, points in enumerate(POINTS_OF_A_RANK):
        work = file_work_of_a_save(second_half(f"whole-{rank}"), rank, tmp_path / f"counted-{rank}")
        assert work >= points
        for point in range(points):
            config = second_half(f"cut-{rank}-{point}")
            kill_before(config, rank, point * (work - 1) // (points - 1))
            used += resumes_from_a_whole_one(config, undisturbed)
    assert used == sum(POINTS_OF_A_RANK)
    figures.record("cut_off_save", points=sum(POINTS_OF_A_RANK), newest_whole_one_used=used)
