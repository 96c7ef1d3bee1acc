"""Facts of ranks as the preflight exchanges them, all alike but for what a test plants."""

from dataclasses import replace
from typing import Any

from megaslm.engine.rank_names import Rank
from megaslm.health.clocks import ClockReading
from megaslm.health.host_facts import LIBRARIES, Disk, RankFacts

GIB = 1 << 30
RANKS_A_HOST = 2


def planted(ranks: int, odd: dict[int, dict[str, Any]] | None = None, **fields: Any) -> list[RankFacts]:
    """Ranks on hosts of two; `odd` changes fields of single ranks, `fields` those of all."""
    changes = odd or {}
    return [replace(_usual(rank), **{**fields, **changes.get(rank, {})}) for rank in range(ranks)]


def _usual(rank: int) -> RankFacts:
    return RankFacts(
        rank=Rank(rank, f"node-{rank // RANKS_A_HOST}"),
        python="3.12.4",
        versions=dict.fromkeys(LIBRARIES, "1.0"),
        gpus=["NVIDIA H100"] * RANKS_A_HOST,
        driver="550.54.15",
        settings={"train.lr": "0.01", "seed": "0"},
        files={"manifest.json of data.train": "9c1b"},
        clock=ClockReading(1_700_000_000.0, 0.01),
        memory_bytes=512 * GIB,
        checkpoint_bytes=12 * GIB,
        checkpoints=Disk("/shared/run/checkpoints", 1000 * GIB),
        cache=Disk("/local/cache", 1000 * GIB),
        shared_memory=Disk("/dev/shm", 64 * GIB),
    )
