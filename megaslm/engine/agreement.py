"""What ranks decide together between two steps: small numbers, over a group of the hosts' processors."""

import torch
import torch.distributed as dist

from megaslm.engine.distributed import World


class Agreement:
    """Gives every rank the same answer, without waiting for any device."""

    def __init__(self, world: World) -> None:
        """Called on all ranks. Where ranks talk through GPUs, a group of their processors is made."""
        self._alone = world.size == 1
        self._group = dist.new_group(backend="gloo") if world.device.type == "cuda" and not self._alone else None

    def most(self, *numbers: int) -> list[int]:
        """Of each number the largest that any rank brings; called on all ranks equally often."""
        if self._alone:
            return list(numbers)
        shared = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=self._group)
        return shared.tolist()

    def any(self, statement: bool) -> bool:
        """Whether it holds on any rank."""
        return bool(self.most(int(statement))[0])
