"""The preflight: reports differences between ranks and shortages of hosts before anything depends on them."""

import socket
from collections.abc import Iterator, Sequence

from megaslm.engine.distributed import World
from megaslm.engine.rank_names import Rank
from megaslm.errors import PreflightError
from megaslm.health.clocks import clock_trait, most_seconds_apart, read_clock_together
from megaslm.health.disk import room_for_checkpoints, size_of
from megaslm.health.findings import Finding, Requirements, Trait, disagreements
from megaslm.health.host_facts import LIBRARIES, Code, RankFacts, by_host, code_trait, look
from megaslm.health.network_check import AllReduce, Link, slow_links, time_all_reduce, time_links
from megaslm.health.shared_folders import exchange

_MOST_SETTINGS_NAMED = 8
_NOT_SET = "not set"
_LEAST_CACHE_BYTES = 1 << 30
# NCCL passes data through /dev/shm; nothing else in a run does.
_LEAST_SHARED_MEMORY_BYTES_A_RANK = 16 << 20


def preflight(world: World, requirements: Requirements) -> list[str]:
    """Checks that all ranks run the same code on the same job, on hosts with the required resources.

    Called on all ranks, before any other collective: with different code or settings they would wait for one another in
    different places. It takes some hundredths of a second, plus the transfer of some MB between hosts.

    Returns:
        The first rank's output: warnings and, for several ranks, a line about the network between them.

    Raises:
        PreflightError: on all ranks, with a line for each problem that names the ranks and their hosts.
    """
    rank = Rank(world.rank, socket.gethostname())
    if world.size > 1:
        _require_one_code(rank, world)
    all_facts = exchange(look(rank, requirements, read_clock_together(world)), world.device)
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
    """Runs first, because another version may exchange other facts."""
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


def differences(all_facts: Sequence[RankFacts]) -> list[Finding]:
    """The differences between the facts of all ranks, which are in rank order."""
    ranks = [facts.rank for facts in all_facts]
    found = _first_few(finding for trait in _settings(all_facts) for finding in disagreements(trait, ranks))
    found += [finding for trait in _others(all_facts) for finding in disagreements(trait, ranks)]
    return found


def _settings(all_facts: Sequence[RankFacts]) -> Iterator[Trait]:
    for name in _all_names(facts.settings for facts in all_facts):
        values = [facts.settings.get(name, _NOT_SET) for facts in all_facts]
        yield Trait(name, values, "start all ranks with one configuration")


def _others(all_facts: Sequence[RankFacts]) -> Iterator[Trait]:
    for name in _all_names(facts.files for facts in all_facts):
        values = [facts.files.get(name, _NOT_SET) for facts in all_facts]
        yield Trait(name, values, "give all hosts the same files, or a file system that they share")
    for library in LIBRARIES:
        values = [facts.versions[library] for facts in all_facts]
        yield Trait(f"the version of {library}", values, "install one on all hosts")
    yield Trait(
        "the version of Python", [facts.python for facts in all_facts], "use one on all hosts", must_agree=False
    )
    counts = [str(len(facts.gpus)) for facts in all_facts]
    yield Trait("the number of GPUs", counts, "check the host with fewer, unless it is intended", must_agree=False)
    models = [", ".join(sorted(set(facts.gpus))) or "none" for facts in all_facts]
    # A host without GPUs is reported once.
    if len(set(counts)) == 1:
        yield Trait("the model of GPU", models, "all ranks run at the speed of the slowest one", must_agree=False)
        drivers = [facts.driver for facts in all_facts]
        yield Trait("the GPUs' driver", drivers, "install one version on all hosts", must_agree=False)
    yield clock_trait([facts.clock for facts in all_facts])


def _first_few(findings: Iterator[Finding]) -> list[Finding]:
    """The first findings, and the number of the others: two runs may have nothing in common."""
    found = list(findings)
    left_out = len(found) - _MOST_SETTINGS_NAMED
    more = [Finding(f"and {left_out} more differences between settings")] if left_out > 0 else []
    return found[:_MOST_SETTINGS_NAMED] + more


def _all_names(groups: Iterator[dict[str, str]]) -> list[str]:
    return list(dict.fromkeys(name for group in groups for name in group))


def shortages(all_facts: Sequence[RankFacts]) -> list[Finding]:
    """The shortages of the hosts."""
    # A rank whose host does not see the model does not know the size of a checkpoint.
    checkpoint_bytes = max(facts.checkpoint_bytes for facts in all_facts)
    found = list(_room_for_checkpoints(all_facts, checkpoint_bytes))
    for host, its_facts in by_host(all_facts).items():
        copied_bytes = checkpoint_bytes * len(its_facts) // len(all_facts)
        found += [*_memory(host, its_facts, copied_bytes), *_cache(host, its_facts), *_shared_memory(host, its_facts)]
    return found


def _room_for_checkpoints(all_facts: Sequence[RankFacts], needed_bytes: int) -> Iterator[Finding]:
    """The file system is shared, so the rank that sees the least room counts."""
    seen = [(facts.checkpoints, facts.rank.host) for facts in all_facts if facts.checkpoints is not None]
    if not seen:
        return
    disk, host = min(seen, key=lambda one: one[0].free_bytes)
    yield from room_for_checkpoints(disk, host, needed_bytes)


def _memory(host: str, its_facts: Sequence[RankFacts], copied_bytes: int) -> Iterator[Finding]:
    available_bytes = min(facts.memory_bytes for facts in its_facts)
    if available_bytes < copied_bytes:
        yield Finding(
            f"{host} has {size_of(available_bytes)} of memory left; for a checkpoint its ranks copy "
            f"{size_of(copied_bytes)} into it: end other programs there, or use more hosts"
        )


def _cache(host: str, its_facts: Sequence[RankFacts]) -> Iterator[Finding]:
    disk = its_facts[0].cache
    if disk is not None and disk.free_bytes < _LEAST_CACHE_BYTES:
        yield Finding(
            f"{disk.folder} on {host} has room for {size_of(disk.free_bytes)} of fetched data: make room, or set "
            "another cache",
            ends_the_job=False,
        )


def _shared_memory(host: str, its_facts: Sequence[RankFacts]) -> Iterator[Finding]:
    disk = its_facts[0].shared_memory
    needed_bytes = _LEAST_SHARED_MEMORY_BYTES_A_RANK * len(its_facts)
    if its_facts[0].gpus and disk is not None and disk.free_bytes < needed_bytes:
        yield Finding(
            f"{disk.folder} on {host} has room for {size_of(disk.free_bytes)}; NCCL wants {size_of(needed_bytes)}: "
            "remove leftover files from it, or make it larger (a container's --shm-size)",
            ends_the_job=False,
        )
