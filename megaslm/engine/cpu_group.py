"""Decisions that all ranks take together between two steps: small numbers, over a group on the hosts' processors."""

from typing import cast

import torch
import torch.distributed as dist

from megaslm.engine.distributed import LONGEST_WAIT, World


class Answer:
    """The numbers of all ranks, once every rank has sent its own."""

    def __init__(self, numbers: tuple[int, ...], group: dist.ProcessGroup | None) -> None:
        """Sends this rank's numbers to the group; None is a world of one rank."""
        self._shared = torch.tensor(numbers, dtype=torch.int64)
        self._under_way: dist.Work | None = None
        if group is not None:
            work = dist.all_reduce(self._shared, op=dist.ReduceOp.MAX, group=group, async_op=True)
            self._under_way = cast(dist.Work, work)

    def read(self) -> list[int]:
        """The maximum of each number over all ranks. Waits for ranks that have not sent theirs."""
        if self._under_way is not None:
            self._under_way.wait()
        numbers: list[int] = self._shared.tolist()
        return numbers


class CpuGroup:
    """Gives every rank the same answer, without waiting for any device."""

    def __init__(self, world: World) -> None:
        """Called on all ranks; opens separate connections for this group."""
        self._group = None if world.size == 1 else dist.new_group(backend="gloo", timeout=LONGEST_WAIT)

    def ask(self, *numbers: int) -> Answer:
        """Sends this rank's numbers; called equally often on all ranks. The answer may be read much later."""
        return Answer(numbers, self._group)

    def any(self, statement: bool) -> bool:
        """Whether the statement holds on any rank. Waits for all ranks."""
        return bool(self.ask(int(statement)).read()[0])
