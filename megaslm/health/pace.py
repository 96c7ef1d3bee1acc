"""The speed of this rank's own work, and the time in which its host does not let it run.

Time in which it waits for another rank does not count.
"""

import threading
import time
from dataclasses import astuple, dataclass
from typing import Self

import torch
from torch import Tensor

from megaslm.engine.distributed import World, all_gather

_BEAT_SECONDS = 0.02
# The interpreter's lock and the scheduler delay every thread a little.
_TOLERATED_SECONDS = 0.02
_PRODUCTS = 8


class PauseMeter:
    """A thread that wakes up at regular times. Its delay is time in which the whole process stood still.

    Work of the other threads, and their waiting for a device or for other ranks, does not delay it.
    """

    def __init__(self) -> None:
        """Starts the thread, which ends with the process or at `stop`."""
        self._paused_seconds = 0.0
        self._asked_at = time.monotonic()
        self._paused_before = 0.0
        self._stopped = threading.Event()
        threading.Thread(target=self._beat, name="pause meter", daemon=True).start()

    def paused_share(self) -> float:
        """The share of the time since the last call in which the process stood still."""
        now, paused = time.monotonic(), self._paused_seconds
        share = (paused - self._paused_before) / max(now - self._asked_at, _BEAT_SECONDS)
        self._asked_at, self._paused_before = now, paused
        return min(share, 1.0)

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()

    def _beat(self) -> None:
        woken_at = time.monotonic()
        while not self._stopped.wait(_BEAT_SECONDS):
            now = time.monotonic()
            late_seconds = now - woken_at - _BEAT_SECONDS
            if late_seconds > _TOLERATED_SECONDS:
                self._paused_seconds += late_seconds
            woken_at = now


@dataclass(frozen=True)
class Pace:
    """The times of one rank, over the steps of a report."""

    product_seconds: float
    """Seconds that its processor or GPU takes to multiply two matrices."""
    loading_seconds: float
    """Mean seconds per step that it waits for its own rows."""
    step_seconds: float
    """Mean seconds per step; nearly equal on all ranks, which wait for one another."""
    paused_share: float
    """The share of the time in which the host did not let it run."""

    @classmethod
    def from_tensor(cls, values: Tensor) -> list[Self]:
        """The paces of all ranks, from a tensor of (ranks, 4)."""
        return [cls(*row) for row in values.tolist()]


class PaceMeter:
    """Measures the times of one rank."""

    def __init__(self, world: World, *, product_size: int | None = None) -> None:
        """`product_size`: rows and columns of the matrices that a report multiplies; None depends on the device."""
        self._world = world
        self._product_size = product_size or (2048 if world.device.type == "cuda" else 256)
        self._pauses = PauseMeter()
        self._steps = 0
        self._loading_seconds = 0.0
        self._step_seconds = 0.0

    def add_step(self, *, loading_seconds: float, step_seconds: float) -> None:
        """Adds an optimiser step by the host's clock: the wait for its rows, and all of it with this wait."""
        self._steps += 1
        self._loading_seconds += loading_seconds
        self._step_seconds += step_seconds

    def share(self) -> list[Pace]:
        """The paces of all ranks since the last call, in rank order. Called on all ranks; waits for the device."""
        steps = max(1, self._steps)
        own = Pace(
            product_seconds=product_seconds(self._world.device, self._product_size),
            loading_seconds=self._loading_seconds / steps,
            step_seconds=self._step_seconds / steps,
            paused_share=self._pauses.paused_share(),
        )
        self._steps, self._loading_seconds, self._step_seconds = 0, 0.0, 0.0
        return Pace.from_tensor(all_gather(torch.tensor(astuple(own), dtype=torch.float64, device=self._world.device)))

    def close(self) -> None:
        """Ends the pause meter."""
        self._pauses.stop()


def product_seconds(device: torch.device, size: int) -> float:
    """Seconds of a product of two (size, size) matrices: the fastest, least disturbed one of several.

    On a CPU it is this process's processor time, which excludes other programs. Nearly everything else in a step
    contains collectives, in which fast ranks wait for slow ones.
    """
    on_gpu = device.type == "cuda"
    left = torch.ones(size, size, dtype=torch.bfloat16 if on_gpu else torch.float32, device=device)
    product = torch.empty_like(left)
    seconds = []
    # The first product chooses and loads a kernel.
    for _ in range(1 + _PRODUCTS):
        if on_gpu:
            begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begun.record()
            torch.mm(left, left, out=product)
            ended.record()
            ended.synchronize()
            seconds.append(begun.elapsed_time(ended) / 1000.0)
        else:
            started = time.process_time()
            torch.mm(left, left, out=product)
            seconds.append(time.process_time() - started)
    return min(seconds[1:])
