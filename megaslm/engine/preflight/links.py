"""How quickly each rank is reached from the host before its own: of which two hosts the connection is a slow one.

An all-reduce is as slow as the slowest of them, and does not tell which that is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from megaslm.engine.distributed import World, all_gather, receive_from, send_to
from megaslm.engine.preflight.findings import Finding
from megaslm.engine.preflight.probe import probe, quickest_seconds
from megaslm.engine.rank_names import Rank, name_numbers

_SLOW_RATIO = 2.0


@dataclass(frozen=True)
class Link:
    """The way from a rank to that of the same number on the next host, which may have a network adapter of its own.

    It is timed while the other ranks of the host send too.
    """

    source: Rank
    target: Rank
    bytes_per_second: float


def time_links(world: World, ranks: Sequence[Rank]) -> list[Link]:
    """Those to all ranks, on every rank; called on all of them.

    Empty where there is one host, or the ranks do not follow one another in groups of one size, host by host.
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
    """When a host sends to the next one. None sends and receives at a time, so that a time is that of one way."""
    return 2 if hosts % 2 and host == hosts - 1 else host % 2


def slow_links(links: Sequence[Link]) -> list[Finding]:
    """A warning for each host from which the next one is reached much worse than others are."""
    if not links:
        return []
    # With three hosts, two thirds of the links are those of a bad one.
    usual = sorted((link.bytes_per_second for link in links), reverse=True)[len(links) // 4]
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
