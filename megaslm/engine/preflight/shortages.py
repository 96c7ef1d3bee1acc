"""Of what a host has too little."""

from collections.abc import Iterator, Sequence

from megaslm.engine.preflight.facts import RankFacts, by_host
from megaslm.engine.preflight.findings import Finding

_LEAST_CACHE_BYTES = 1 << 30
# NCCL passes data on through it; nothing else of a run does.
_LEAST_SHARED_MEMORY_BYTES_A_RANK = 16 << 20


def shortages(all_facts: Sequence[RankFacts]) -> list[Finding]:
    """What the hosts of the ranks lack."""
    # A rank whose host does not see the model cannot tell how large a checkpoint is.
    checkpoint_bytes = max(facts.checkpoint_bytes for facts in all_facts)
    found = list(_room_for_checkpoints(all_facts, checkpoint_bytes))
    for host, its_facts in by_host(all_facts).items():
        copied_bytes = checkpoint_bytes * len(its_facts) // len(all_facts)
        found += [*_memory(host, its_facts, copied_bytes), *_cache(host, its_facts), *_shared_memory(host, its_facts)]
    return found


def _room_for_checkpoints(all_facts: Sequence[RankFacts], needed_bytes: int) -> Iterator[Finding]:
    """The file system is one, so that the rank counts that sees least room."""
    seen = [(facts.checkpoints, facts.rank.host) for facts in all_facts if facts.checkpoints is not None]
    if not seen:
        return
    disk, host = min(seen, key=lambda one: one[0].free_bytes)
    found = f"{disk.folder} has room for {_size(disk.free_bytes)}, seen from {host}; a checkpoint takes "
    remedy = "make room, or set run_dir to another file system"
    if disk.free_bytes < needed_bytes:
        yield Finding(f"{found}{_size(needed_bytes)}: {remedy}")
    elif disk.free_bytes < 2 * needed_bytes:
        yield Finding(f"{found}{_size(needed_bytes)}, and there are two at a time: {remedy}", ends_the_job=False)


def _memory(host: str, its_facts: Sequence[RankFacts], copied_bytes: int) -> Iterator[Finding]:
    available_bytes = min(facts.memory_bytes for facts in its_facts)
    if available_bytes < copied_bytes:
        yield Finding(
            f"{host} has {_size(available_bytes)} of memory left; for a checkpoint its ranks copy "
            f"{_size(copied_bytes)} into it: end what else runs there, or use more hosts"
        )


def _cache(host: str, its_facts: Sequence[RankFacts]) -> Iterator[Finding]:
    disk = its_facts[0].cache
    if disk is not None and disk.free_bytes < _LEAST_CACHE_BYTES:
        yield Finding(
            f"{disk.folder} on {host} has room for {_size(disk.free_bytes)} of what is fetched: make room, or set "
            "another cache",
            ends_the_job=False,
        )


def _shared_memory(host: str, its_facts: Sequence[RankFacts]) -> Iterator[Finding]:
    disk = its_facts[0].shared_memory
    needed_bytes = _LEAST_SHARED_MEMORY_BYTES_A_RANK * len(its_facts)
    if its_facts[0].gpus and disk is not None and disk.free_bytes < needed_bytes:
        yield Finding(
            f"{disk.folder} on {host} has room for {_size(disk.free_bytes)}; NCCL wants {_size(needed_bytes)}: remove "
            "what is left in it, or make it larger (a container's --shm-size)",
            ends_the_job=False,
        )


def _size(count_bytes: int) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count_bytes >= factor:
            return f"{count_bytes / factor:,.1f} {unit}"
    return f"{count_bytes} bytes"
