"""How quickly the ranks reach one another, all at once."""

from dataclasses import dataclass

from megaslm.engine.distributed import World, all_reduce_sum
from megaslm.engine.preflight.probe import MIB, probe, quickest_seconds


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
            f"all-reduce of {self.size_bytes // MIB} MiB in {self.seconds * 1e3:.1f} ms, "
            f"{self.bus_bytes_per_second / 1e9:.2g} GB/s"
        )


def time_all_reduce(world: World, *, hosts: int) -> AllReduce:
    """Times one; called on all ranks."""
    numbers = probe(world, hosts=hosts)
    return AllReduce(world.size, numbers.nbytes, quickest_seconds(all_reduce_sum, numbers))
