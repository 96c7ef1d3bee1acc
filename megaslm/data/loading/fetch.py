"""How shards of a remote dataset are fetched."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FetchSettings:
    """Limits of one run on one host."""

    cache_limit_bytes: int | None
    """What the local cache may hold: shards that were read longest ago make room for others. None: no limit."""
    retries: int
    """How often a failed download is tried again, after a pause that doubles each time."""
    timeout_seconds: float
    """How long a process waits for a shard before it gives up; each try may be silent for its share of that."""
