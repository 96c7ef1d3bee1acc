"""Time and memory of a GPU where there is one; a CPU keeps its own time and counts no memory."""

import time
from collections.abc import Callable

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def clock() -> float:
    """Seconds, once the device has done what it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_gib(run: Callable[[], object]) -> float:
    """What a run allocates at most beyond what lies there already; 0 on a CPU, which does not count it."""
    if DEVICE.type != "cuda":
        return 0.0
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return (torch.cuda.max_memory_allocated() - before) / (1 << 30)
