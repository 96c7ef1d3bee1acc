"""How quickly the ranks reach one another."""

import time
from dataclasses import dataclass

import torch

from megaslm.engine.distributed import World, all_reduce_sum

_MIB = 1 << 20
_BYTES_ON_GPUS = 64 * _MIB
_BYTES_BETWEEN_HOSTS = 8 * _MIB
# Ranks of one host without GPUs share its processors, and no network is to be measured.
_BYTES_ON_ONE_HOST = 1 * _MIB
_REPETITIONS = 3


@dataclass(frozen=True)
class AllReduce:
    """One that was timed."""

    ranks: int
    size_bytes: int
    seconds: float
    """The quickest of several."""

    @property
    def bus_bytes_per_second(self) -> float:
        """What each rank sends, and what it receives, in a second: whatever the number of ranks, a link's share."""
        return 2 * (self.ranks - 1) / self.ranks * self.size_bytes / self.seconds

    def __str__(self) -> str:
        """In a few words."""
        return (
            f"all-reduce of {self.size_bytes // _MIB} MiB in {self.seconds * 1e3:.1f} ms, "
            f"{self.bus_bytes_per_second / 1e9:.2g} GB/s"
        )


def time_all_reduce(world: World, *, hosts: int) -> AllReduce:
    """Times one of a size that suits the device and the number of hosts; called on all ranks."""
    on_gpus = world.device.type == "cuda"
    size_bytes = _BYTES_ON_GPUS if on_gpus else _BYTES_BETWEEN_HOSTS if hosts > 1 else _BYTES_ON_ONE_HOST
    numbers = torch.zeros(size_bytes // torch.float32.itemsize, dtype=torch.float32, device=world.device)

    def seconds() -> float:
        began = time.perf_counter()
        # Reading a number waits for the device.
        all_reduce_sum(numbers)[0].item()
        return time.perf_counter() - began

    seconds()
    return AllReduce(world.size, size_bytes, min(seconds() for _ in range(_REPETITIONS)))
