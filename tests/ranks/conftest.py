"""What the tests of ranks share."""

from collections.abc import Iterator

import pytest
import torch

from tests.rank_pool import RankPool


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Ranks that tests start have one thread each; more of them here would only contend with theirs."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ranks(one_thread: None) -> Iterator[RankPool]:
    """Two ranks, for small jobs that one after another sends to them."""
    pool = RankPool(2)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def lone_rank(one_thread: None) -> Iterator[RankPool]:
    """The same of a world of one."""
    pool = RankPool(1)
    yield pool
    pool.close()
