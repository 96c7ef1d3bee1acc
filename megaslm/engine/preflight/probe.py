"""What is sent between ranks to find out how quick their network is, and how its time is taken."""

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from megaslm.engine.distributed import World, all_reduce_sum

MIB = 1 << 20
_BYTES_ON_GPUS = 64 * MIB
_BYTES_BETWEEN_HOSTS = 8 * MIB
# Ranks of one host without GPUs share its processors, and no network is to be measured.
_BYTES_ON_ONE_HOST = 1 * MIB
_REPETITIONS = 5
_ENOUGH_SECONDS = 5.0


def probe(world: World, *, hosts: int) -> Tensor:
    """Zeros, float32, so many as suit the device and the number of hosts."""
    on_gpus = world.device.type == "cuda"
    size_bytes = _BYTES_ON_GPUS if on_gpus else _BYTES_BETWEEN_HOSTS if hosts > 1 else _BYTES_ON_ONE_HOST
    return torch.zeros(size_bytes // torch.float32.itemsize, dtype=torch.float32, device=world.device)


def quickest_seconds(transfer: Callable[[Tensor], object], numbers: Tensor) -> float:
    """How long the quickest of several transfers takes, begun by all ranks at one time; called on all ranks.

    Args:
        transfer: sends or receives the numbers, in place. Its first run also makes the connections, and counts only
            where it has taken so long that there is no second one.
        numbers: what is sent, the same size on all ranks.
    """
    first, *others = _seconds_of_several(transfer, numbers)
    return min(others, default=first)


def _seconds_of_several(transfer: Callable[[Tensor], object], numbers: Tensor) -> Iterator[float]:
    spent_seconds = 0.0
    for _ in range(1 + _REPETITIONS):
        # All begin together, and stop together.
        has_enough = torch.tensor(float(spent_seconds > _ENOUGH_SECONDS), device=numbers.device)
        if all_reduce_sum(has_enough).item() > 0:
            return
        began = time.perf_counter()
        transfer(numbers)
        # Reading a number waits for the device.
        numbers[0].item()
        seconds = time.perf_counter() - began
        yield seconds
        spent_seconds += seconds
