"""Whether the host may wait for the GPU, as torch can tell."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch


@contextmanager
def when_the_host_waits(mode: Literal["default", "error"]) -> Iterator[None]:
    """Within the context torch lets the host wait for the GPU, or raises where it does."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
