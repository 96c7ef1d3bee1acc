"""Ranks that share work as they go: each item is drawn once, and a failure of one ends all."""

import json
import os
import time
from pathlib import Path

import pytest

from megaslm.engine import work_queue
from megaslm.engine.distributed import join_world, leave_world
from megaslm.engine.work_queue import WorkQueue
from megaslm.errors import DataError, MegaSLMError, PeerFailed
from tests.forks import fork_ranks, statuses_of


def test_each_number_is_drawn_once_and_progress_adds_up(tmp_path: Path) -> None:
    def draw() -> None:
        world = join_world()
        queue = WorkQueue(world)
        drawn, told = [], []
        while (number := queue.draw()) < 50:
            drawn.append(number)
            told.append(queue.add_progress(10))
            # The first rank is slow.
            time.sleep(0.02 if world.is_first else 0.001)
        queue.wait_for_all(told.append)
        (tmp_path / f"{world.rank}.json").write_text(
            json.dumps([drawn, queue.add_progress(0) if world.is_first else 500])
        )
        leave_world()

    assert statuses_of(fork_ranks(3, draw)) == [0, 0, 0]
    drawn, sums = zip(*(json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)), strict=True)
    assert sorted(number for each in drawn for number in each) == list(range(50))
    assert len(drawn[0]) < min(len(drawn[1]), len(drawn[2]))
    assert set(sums) == {500}


@pytest.mark.parametrize("failing", [0, 1])
def test_where_one_fails_all_end_with_its_status(failing: int, tmp_path: Path) -> None:
    """While they work, and while they wait."""

    def run() -> None:
        world = join_world()
        queue = WorkQueue(world)
        try:
            if world.rank == failing:
                time.sleep(0.2)
                raise DataError("broken")
            if world.rank == 2:
                queue.wait_for_all()
            while True:
                queue.add_progress(1)
                time.sleep(0.01)
        except (DataError, PeerFailed) as error:
            (tmp_path / f"{world.rank}").write_text(f"{type(error).__name__}: {error}")
            queue.fail(error)
            raise

    started = time.monotonic()
    assert statuses_of(fork_ranks(3, run)) == [2, 2, 2]
    assert time.monotonic() - started < 30
    found = {(tmp_path / str(rank)).read_text() for rank in range(3) if rank != failing}
    assert found == {"PeerFailed: broken"}
    assert (tmp_path / str(failing)).read_text() == "DataError: broken"


def test_where_the_first_rank_dies_the_others_say_so_and_end(capfd: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        world = join_world()
        queue = WorkQueue(world)
        if world.is_first:
            time.sleep(0.5)
            os._exit(3)
        try:
            while True:
                queue.add_progress(1)
        except MegaSLMError as error:
            queue.fail(error)
            raise

    assert statuses_of(fork_ranks(2, run)) == [3, 1]
    assert "the first rank is gone" in capfd.readouterr().err


def test_where_another_rank_dies_the_first_finds_out(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(work_queue, "_SIGN_SECONDS", 0.1)
    monkeypatch.setattr(work_queue, "_MOST_SILENT_SECONDS", 2.0)
    monkeypatch.setattr(work_queue, "_FAREWELL_SECONDS", 2.0)

    def run() -> None:
        world = join_world()
        queue = WorkQueue(world)
        if world.rank == 1:
            time.sleep(0.5)
            os._exit(9)
        try:
            queue.wait_for_all()
        except MegaSLMError as error:
            queue.fail(error)
            raise

    assert statuses_of(fork_ranks(3, run)) == [1, 9, 1]
    assert "rank 1 has given no sign of life for" in capfd.readouterr().err


def test_a_rank_that_works_for_long_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_queue, "_SIGN_SECONDS", 0.1)
    monkeypatch.setattr(work_queue, "_MOST_SILENT_SECONDS", 1.0)

    def run() -> None:
        world = join_world()
        queue = WorkQueue(world)
        if world.rank == 1:
            time.sleep(3.0)
        queue.wait_for_all()
        leave_world()

    assert statuses_of(fork_ranks(2, run)) == [0, 0]
