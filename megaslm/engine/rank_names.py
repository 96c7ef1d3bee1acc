"""Names of ranks in messages."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rank:
    """A rank and its host."""

    number: int
    host: str


def name_ranks(ranks: Iterable[Rank]) -> str:
    """All ranks by host, such as `ranks 0-7 on node-1 and rank 9 on node-2`."""
    by_host: dict[str, list[int]] = {}
    for rank in ranks:
        by_host.setdefault(rank.host, []).append(rank.number)
    return " and ".join(f"{name_numbers(numbers)} on {host}" for host, numbers in by_host.items())


def name_absent(numbers: Iterable[int], world_size: int) -> str:
    """Ranks that have not reported, by host where the launcher has told which ranks are on which host.

    MEGASLM_HOSTS lists the hosts in rank order: `node-1:8,node-2:8`.
    """
    told = re.findall(r"([^,]+):(\d+)", os.environ.get("MEGASLM_HOSTS", ""))
    hosts = [host for host, count in told for _ in range(int(count))]
    # The variable may still be that of another job.
    if len(hosts) != world_size:
        return name_numbers(numbers)
    return name_ranks(Rank(number, hosts[number]) for number in sorted(numbers))


def name_numbers(numbers: Iterable[int]) -> str:
    """Ranks without their hosts: `ranks 0-7, 9`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    is_one = len(runs) == 1 and len(runs[0]) == 1
    told = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"{'rank' if is_one else 'ranks'} {told}"
