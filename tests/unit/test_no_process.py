"""No test of this folder starts a process, by itself or by what it tests."""

import os

import pytest
from torch.utils.data import DataLoader


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_process_is_refused(method: str) -> None:
    with pytest.raises(AssertionError):
        os.fork()
    with pytest.raises(AssertionError):
        next(iter(DataLoader([1, 2], num_workers=1, multiprocessing_context=method)))
