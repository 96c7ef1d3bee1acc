"""What a run has cost: tokens, seconds and GPU-hours, for SLM with its reference's training and scoring."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from megaslm.data.durable import write_file
from megaslm.engine.distributed import World
from megaslm.training.checkpoint import Progress


@dataclass(frozen=True)
class Cost:
    """The cost of training alone; `gpu_hours` is 0 on CPUs."""

    tokens_seen: int
    tokens_selected: int
    seconds: float
    ranks: int
    gpu_hours: float


def write_cost(path: Path, progress: Progress, tokens_seen: int, world: World, *, scored_dataset: Path | None) -> None:
    """Writes cost.json; `scored_dataset` adds what its scoring has cost, and the training of its reference."""
    gpus = world.size if world.device.type == "cuda" else 0
    cost = Cost(
        tokens_seen=tokens_seen,
        tokens_selected=progress.selected_tokens,
        seconds=progress.seconds,
        ranks=world.size,
        gpu_hours=progress.seconds * gpus / 3600,
    )
    scoring = None if scored_dataset is None else scored_dataset / "cost.json"
    before = json.loads(scoring.read_text(encoding="utf-8")) if scoring is not None and scoring.is_file() else {}
    write_file(path, json.dumps({"training": asdict(cost), **before}, indent=1) + "\n")
