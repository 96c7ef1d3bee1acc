"""Gradients that are summed in a fixed order on a GPU, so that two runs have equal weights, bit for bit."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import deterministic

_memory: Any = deterministic
"""The types of torch lack the module's one setting."""


def prepare_fixed_order() -> None:
    """Makes the results of cuBLAS repeatable. Called before this process uses a GPU: cuBLAS reads its setting once."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def fixed_order() -> Iterator[None]:
    """Within the context operators sum in a fixed order, the backward pass of FlashAttention among them.

    Operators that cannot raise RuntimeError. Meant for backward passes, in which MegaSLM has no such operator.
    """
    fills_memory = _memory.fill_uninitialized_memory
    # It would write NaN into every new tensor.
    _memory.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        _memory.fill_uninitialized_memory = fills_memory
