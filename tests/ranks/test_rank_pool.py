"""The pool of ranks: what jobs give and raise, who has died or hangs, and that jobs leave one another alone."""

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from megaslm.engine.distributed import World, all_reduce_sum
from tests.rank_pool import RankFailed, RankPool


@pytest.fixture
def pool() -> Iterator[RankPool]:
    """Ranks that only one test has."""
    pool = RankPool(2)
    yield pool
    pool.close()


def process(world: World) -> int:
    return os.getpid()


def together(world: World, value: int) -> float:
    return all_reduce_sum(torch.tensor([float(value + world.rank)])).item()


def changed(world: World) -> None:
    os.environ["LEFT_BEHIND"] = "1"
    os.chdir(tempfile.gettempdir())
    torch.manual_seed(world.rank + 1)


def seen(world: World) -> tuple[str | None, Path, int]:
    return os.environ.get("LEFT_BEHIND"), Path.cwd(), torch.initial_seed()


def fail_on(world: World, rank: int) -> None:
    if world.rank == rank:
        raise ValueError("unwell")
    together(world, 0)


def die_on(world: World, rank: int) -> None:
    if world.rank == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    together(world, 0)


def die_slowly_on(world: World, rank: int) -> None:
    """As a process does: its pipes are closed some time before it can be waited for."""
    if world.rank == rank:
        os.closerange(3, 256)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)


def hang_on(world: World, rank: int) -> None:
    if world.rank == rank:
        time.sleep(600)


def test_jobs_work_together_in_the_same_two_processes(ranks: RankPool) -> None:
    first = ranks.run(process)
    assert len({*first, os.getpid()}) == 3
    assert ranks.run(together, 20) == [41.0, 41.0]
    assert ranks.run(together, value=1) == [3.0, 3.0]
    assert ranks.run(process) == first


def test_what_a_job_changes_is_set_back(ranks: RankPool) -> None:
    ranks.run(process)
    before = ranks.run(seen)
    ranks.run(changed)
    assert ranks.run(seen) == before == [(None, Path.cwd(), 0)] * 2


@pytest.mark.parametrize("rank", [0, 1])
def test_who_fails_is_named_with_its_stack_and_the_ranks_are_made_anew(pool: RankPool, rank: int) -> None:
    before = pool.run(process)
    with pytest.raises(RankFailed, match=f"rank {rank}: Traceback(.|\n)*in fail_on(.|\n)*ValueError: unwell"):
        pool.run(fail_on, rank)
    assert pool.run(together, 1) == [3.0, 3.0]
    assert not set(before) & set(pool.run(process))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("die", [die_on, die_slowly_on])
def test_who_dies_is_named(pool: RankPool, die: Callable[[World, int], None], rank: int) -> None:
    # Gloo may abort a process whose pipes are closed before the signal comes.
    with pytest.raises(RankFailed, match=rf"^rank {rank} .* -\d"):
        pool.run(die, rank)
    assert pool.run(together, 1) == [3.0, 3.0]


@pytest.mark.parametrize("rank", [0, 1])
def test_who_hangs_is_named_with_its_stack(rank: int) -> None:
    pool = RankPool(2, longest_job_seconds=1.0)
    with pytest.raises(RankFailed, match=f"^rank {rank} (.|\n)*in hang_on"):
        pool.run(hang_on, rank)
    pool.close()


def test_what_is_answered_to_an_interrupted_test_is_not_for_the_next(
    pool: RankPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pool.run(process)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tests.rank_pool.wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pool.run(process)
    assert pool.run(together, 1) == [3.0, 3.0]
    assert not set(before) & set(pool.run(process))
