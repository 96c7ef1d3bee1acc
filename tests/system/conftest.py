"""What the tests of whole systems share."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Ranks that tests start have one thread each; more of them here would only contend with theirs."""
    torch.set_num_threads(1)
