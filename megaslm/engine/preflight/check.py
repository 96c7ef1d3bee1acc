"""The preflight itself: who differs and what is lacking, told on every rank before anything depends on it."""

import socket
from collections.abc import Sequence

from megaslm.engine.distributed import World
from megaslm.engine.preflight.all_reduce import AllReduce, time_all_reduce
from megaslm.engine.preflight.clocks import most_seconds_apart, read_clock_together
from megaslm.engine.preflight.code import Code, code_trait
from megaslm.engine.preflight.demands import Demands
from megaslm.engine.preflight.differences import differences
from megaslm.engine.preflight.exchange import exchange
from megaslm.engine.preflight.facts import RankFacts, by_host, look
from megaslm.engine.preflight.findings import Finding, disagreements
from megaslm.engine.preflight.links import Link, slow_links, time_links
from megaslm.engine.preflight.shortages import shortages
from megaslm.engine.rank_names import Rank
from megaslm.errors import PreflightError


def preflight(world: World, demands: Demands) -> list[str]:
    """Whether all ranks run the same code on the same job, on hosts that have what it needs.

    Called on all ranks, as the first thing that they do together: with unlike code or settings they would go on to wait
    for one another in different places. It takes some hundredths of a second, and the time in which some MB go from
    host to host.

    Returns:
        What the first rank has to say: warnings and, of more than one rank, a line about what connects them.

    Raises:
        PreflightError: on all ranks, with a line for each thing that does not fit; it names the ranks and their hosts.
    """
    rank = Rank(world.rank, socket.gethostname())
    if world.size > 1:
        _require_one_code(rank, world)
    all_facts = exchange(look(rank, demands, read_clock_together(world)), world.device)
    findings = differences(all_facts) + shortages(all_facts)
    _refuse([finding for finding in findings if finding.ends_the_job])
    warnings = [f"warning: {finding.text}" for finding in findings]
    if world.size == 1:
        return warnings
    timed = time_all_reduce(world, hosts=len(by_host(all_facts)))
    links = time_links(world, [facts.rank for facts in all_facts])
    warnings += [f"warning: {finding.text}" for finding in slow_links(links)]
    return [*warnings, _report(all_facts, timed, links)]


def _require_one_code(rank: Rank, world: World) -> None:
    """First, as another version may have other facts to tell."""
    codes = exchange(Code.of(rank), world.device)
    _refuse(list(disagreements(code_trait(codes), [code.rank for code in codes])))


def _refuse(findings: Sequence[Finding]) -> None:
    if findings:
        count = "1 problem" if len(findings) == 1 else f"{len(findings)} problems"
        raise PreflightError(
            f"{count} before the first step\n" + "\n".join(f"  {finding.text}" for finding in findings)
        )


def _report(all_facts: Sequence[RankFacts], timed: AllReduce, links: Sequence[Link]) -> str:
    hosts = len(by_host(all_facts))
    seconds = most_seconds_apart([facts.clock for facts in all_facts])
    speeds = [link.bytes_per_second / 1e9 for link in links]
    between_hosts = f"; each rank to the next host {min(speeds):.2g} to {max(speeds):.2g} GB/s" if speeds else ""
    return (
        f"preflight: {len(all_facts)} ranks on {hosts} {'host' if hosts == 1 else 'hosts'} agree; clocks within "
        f"{max(seconds, 0.001):.2g} s; {timed}{between_hosts}"
    )
