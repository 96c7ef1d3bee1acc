"""Ranks as threads of this process: their all-reduce is a real exchange, and they really wait for one another."""

import threading
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from megaslm.slm.topk import AllReduceSum

T = TypeVar("T")


def run_together(world_size: int, rank: Callable[[int, AllReduceSum], T]) -> list[T]:
    """What `rank(number, all_reduce_sum)` gives on each rank; the first exception of any is raised.

    A rank that calls the all-reduce less often than the others leaves them waiting, and is found by the time limit.
    """
    barrier = threading.Barrier(world_size, timeout=20)
    shared: list[Tensor | None] = [None] * world_size
    results: list[T | None] = [None] * world_size
    errors: list[BaseException] = []

    def run(number: int) -> None:
        def all_reduce_sum(tensor: Tensor) -> Tensor:
            shared[number] = tensor.clone()
            barrier.wait()
            total = sum(part for part in shared if part is not None)
            barrier.wait()
            assert isinstance(total, Tensor)
            # In place, as the collective works.
            return tensor.copy_(total)

        try:
            results[number] = rank(number, all_reduce_sum)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [result for result in results if result is not None]
