"""What ranks decide together between two steps: small numbers, over a group of the hosts' processors."""

from typing import cast

import torch
import torch.distributed as dist

from megaslm.engine.distributed import LONGEST_WAIT, World


class Answer:
    """What all ranks will have said, once they have."""

    def __init__(self, numbers: tuple[int, ...], group: dist.ProcessGroup | None) -> None:
        """Asks the ranks of a group; without one this rank is alone."""
        self._shared = torch.tensor(numbers, dtype=torch.int64)
        self._under_way: dist.Work | None = None
        if group is not None:
            work = dist.all_reduce(self._shared, op=dist.ReduceOp.MAX, group=group, async_op=True)
            self._under_way = cast(dist.Work, work)

    def read(self) -> list[int]:
        """Of each number the largest that any rank has brought; waits for those that have not said theirs."""
        if self._under_way is not None:
            self._under_way.wait()
        numbers: list[int] = self._shared.tolist()
        return numbers


class CpuGroup:
    """Gives every rank the same answer, without waiting for any device."""

    def __init__(self, world: World) -> None:
        """Called on all ranks, which get connections of their own for it."""
        self._group = None if world.size == 1 else dist.new_group(backend="gloo", timeout=LONGEST_WAIT)

    def ask(self, *numbers: int) -> Answer:
        """Brings this rank's numbers; called on all ranks equally often. The answer may be read much later."""
        return Answer(numbers, self._group)

    def any(self, statement: bool) -> bool:
        """Whether it holds on any rank; waits for all of them."""
        return bool(self.ask(int(statement)).read()[0])
