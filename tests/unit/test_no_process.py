"""No test of this folder starts a process, by itself or by what it tests."""

import multiprocessing
import os

import pytest
from torch.utils.data import DataLoader


def test_a_process_is_refused() -> None:
    with pytest.raises(AssertionError):
        os.fork()
    for method in ("fork", "forkserver", "spawn"):
        with pytest.raises(AssertionError):
            multiprocessing.get_context(method).Process(target=print).start()
    with pytest.raises(AssertionError):
        next(iter(DataLoader([1, 2], num_workers=1)))
