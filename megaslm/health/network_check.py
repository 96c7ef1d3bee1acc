"""The speed of the network: of an all-reduce, and of each rank's link from the host before its own.

An all-reduce is as slow as the slowest link, and does not show which link that is.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from megaslm.engine.distributed import World, all_gather, all_reduce_sum, receive_from, send_to
from megaslm.engine.rank_names import Rank, name_numbers
from megaslm.health.findings import Finding

MIB = 1 << 20
_BYTES_ON_GPUS = 64 * MIB
_BYTES_BETWEEN_HOSTS = 8 * MIB
# Ranks of one host without GPUs share its processors; there is no network to measure.
_BYTES_ON_ONE_HOST = 1 * MIB
_REPETITIONS = 5
_ENOUGH_SECONDS = 5.0
_SLOW_RATIO = 2.0
# Of Ethernet with 1 Gbit/s, less overhead.
_LEAST_BYTES_PER_SECOND = 0.1e9


def probe(world: World, *, hosts: int) -> Tensor:
    """Zeros, float32, as many as suit the device and the number of hosts."""
    on_gpus = world.device.type == "cuda"
    size_bytes = _BYTES_ON_GPUS if on_gpus else _BYTES_BETWEEN_HOSTS if hosts > 1 else _BYTES_ON_ONE_HOST
    return torch.zeros(size_bytes // torch.float32.itemsize, dtype=torch.float32, device=world.device)


def quickest_seconds(transfer: Callable[[Tensor], object], numbers: Tensor) -> float:
    """The seconds of the fastest of several transfers, begun by all ranks at one time; called on all ranks.

    Args:
        transfer: sends or receives the numbers, in place. Its first run also opens the connections, and counts only
            where it took so long that there is no second run.
        numbers: the data to send, of the same size on all ranks.
    """
    first, *others = _seconds_of_several(transfer, numbers)
    return min(others, default=first)


def _seconds_of_several(transfer: Callable[[Tensor], object], numbers: Tensor) -> Iterator[float]:
    spent_seconds = 0.0
    for _ in range(1 + _REPETITIONS):
        # All ranks begin together, and stop together.
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


@dataclass(frozen=True)
class Link:
    """The path from a rank to the rank with the same local index on the next host; it may have its own network adapter.

    It is timed while the other ranks of the host send too.
    """

    source: Rank
    target: Rank
    bytes_per_second: float


def time_links(world: World, ranks: Sequence[Rank]) -> list[Link]:
    """The links of all ranks, on every rank; called on all ranks.

    Empty where there is one host, or the ranks are not grouped host by host in groups of one size.
    """
    hosts = list(dict.fromkeys(rank.host for rank in ranks))
    step = len(ranks) // len(hosts)
    if len(hosts) == 1 or [rank.host for rank in ranks] != [host for host in hosts for _ in range(step)]:
        return []
    target, source = (world.rank + step) % world.size, (world.rank - step) % world.size
    sends_in, receives_in = (_turn(rank // step, len(hosts)) for rank in (world.rank, source))
    numbers = probe(world, hosts=len(hosts))

    def pass_on(turn: int, numbers: Tensor) -> None:
        if turn == sends_in:
            send_to(target, numbers)
        elif turn == receives_in:
            receive_from(source, numbers)

    seconds = [quickest_seconds(partial(pass_on, turn), numbers) for turn in range(2 + len(hosts) % 2)]
    speeds = all_gather(torch.tensor(numbers.nbytes / seconds[receives_in], device=world.device)).tolist()
    return [Link(ranks[number - step], ranks[number], speed) for number, speed in enumerate(speeds)]


def _turn(host: int, hosts: int) -> int:
    """The turn in which a host sends to the next one. No host sends and receives in the same turn."""
    return 2 if hosts % 2 and host == hosts - 1 else host % 2


def slow_links(links: Sequence[Link]) -> list[Finding]:
    """A warning for each host from which the next one is reached much more slowly than others are.

    One warning where the usual link is too slow for any training.
    """
    if not links:
        return []
    # With three hosts, one bad host has two thirds of the links.
    usual = sorted((link.bytes_per_second for link in links), reverse=True)[len(links) // 4]
    if usual < _LEAST_BYTES_PER_SECOND:
        return [
            Finding(
                f"a rank reaches the next host with {usual / 1e9:.2g} GB/s, less than 1 Gbit/s Ethernet gives: every "
                "step will wait for the network; if the hosts have a faster one, name its interface in "
                "NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME",
                ends_the_job=False,
            )
        ]
    slow: dict[tuple[str, str], list[Link]] = {}
    for link in links:
        if link.bytes_per_second * _SLOW_RATIO < usual:
            slow.setdefault((link.source.host, link.target.host), []).append(link)
    return [
        Finding(
            f"{name_numbers(link.source.number for link in between)} on {source} to "
            f"{name_numbers(link.target.number for link in between)} on {target}: "
            f"{min(link.bytes_per_second for link in between) / 1e9:.2g} GB/s, where others have {usual / 1e9:.2g}: "
            "look at the network adapters and cables of both hosts",
            ends_the_job=False,
        )
        for (source, target), between in slow.items()
    ]


@dataclass(frozen=True)
class AllReduce:
    """A timed all-reduce."""

    ranks: int
    size_bytes: int
    seconds: float
    """The fastest of several."""

    @property
    def bus_bytes_per_second(self) -> float:
        """Bytes that each rank sends, and receives, per second: a link's load, independent of the number of ranks."""
        return 2 * (self.ranks - 1) / self.ranks * self.size_bytes / self.seconds

    def __str__(self) -> str:
        return (
            f"all-reduce of {self.size_bytes // MIB} MiB in {self.seconds * 1e3:.1f} ms, "
            f"{self.bus_bytes_per_second / 1e9:.2g} GB/s"
        )


def time_all_reduce(world: World, *, hosts: int) -> AllReduce:
    """Times one; called on all ranks."""
    numbers = probe(world, hosts=hosts)
    return AllReduce(world.size, numbers.nbytes, quickest_seconds(all_reduce_sum, numbers))
