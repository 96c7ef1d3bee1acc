"""cost.json counts what came before training, each reference once."""

import json
from pathlib import Path

import torch

from megaslm.config.plan import BatchPlan
from megaslm.config.schema import StreamSection
from megaslm.dataset.manifest import Manifest, Reference
from megaslm.dataset.remote import DatasetFolder
from megaslm.engine.distributed import World
from megaslm.stream.mixture import Mixture, MixtureStream
from megaslm.stream.shards import ShardChecks
from megaslm.training.checkpoints.progress import Progress
from megaslm.training.saving import write_cost
from megaslm.training.training_data import DomainCounts, TrainingDataset

WORLD = World(0, 2, torch.device("cpu"))
COUNTS = DomainCounts(Mixture((MixtureStream(Path("a"), None, 4, 0, None),), ("a",)), seq_len=8, rows_read={"a": 6})
PLAN = BatchPlan(
    world_size=2, seq_len=8, global_batch_rows=2, rows_per_rank=1, micro_batch_rows=1, micro_steps=1, total_steps=10,
    canonical_nodes=2,
)  # fmt: skip
CHECKS = ShardChecks(files=2, bytes=100, seconds=0.5)


def scored_dataset(folder: Path, weights: str, *, seconds: float, trained_seconds: float | None) -> TrainingDataset:
    folder.mkdir()
    cost = {"scoring": {"seconds": seconds, "ranks": 2, "gpu_hours": 0.5}}
    if trained_seconds is not None:
        cost["reference_training"] = {"seconds": trained_seconds, "ranks": 2, "gpu_hours": 0.25}
    (folder / "cost.json").write_text(json.dumps(cost))
    reference = Reference(
        weights_sha256=weights, name="r", precision="fp32", document_isolation=True, window=4, stride=4, batch_rows=8,
        dataset_sha256="",
    )  # fmt: skip
    manifest = Manifest.model_construct(reference=reference)
    section = StreamSection(dataset=str(folder))
    return TrainingDataset(
        f"data.streams.{folder.name}", folder.name, DatasetFolder(folder), manifest, ("a",), section, None
    )


def written(tmp_path: Path, scored: list[TrainingDataset]) -> dict[str, dict[str, object]]:
    path = tmp_path / "cost.json"
    progress = Progress(step=3, selected_tokens=30, seconds=12.0)
    write_cost(path, progress, PLAN, WORLD, domains=COUNTS, checks=CHECKS, scored=scored)
    content: dict[str, dict[str, object]] = json.loads(path.read_text())
    return content


def test_a_run_without_a_reference_has_its_own_cost_alone(tmp_path: Path) -> None:
    expected = {
        "training": {
            "steps": 3, "total_steps": 10, "tokens_seen": 48, "tokens_selected": 30, "seconds": 12.0, "ranks": 2,
            "gpu_hours": 0.0,
        },
        "shard_checks": {"files": 2, "bytes": 100, "seconds": 0.5},
        "domains": {"a": {"tokens_seen": 48, "passes": 1.5}},
    }  # fmt: skip
    assert written(tmp_path, []) == expected


def test_a_reference_that_scored_two_datasets_was_trained_once(tmp_path: Path) -> None:
    cost = written(
        tmp_path,
        [
            scored_dataset(tmp_path / "web", "one", seconds=10.0, trained_seconds=100.0),
            scored_dataset(tmp_path / "books", "one", seconds=20.0, trained_seconds=100.0),
            scored_dataset(tmp_path / "code", "other", seconds=40.0, trained_seconds=1000.0),
            scored_dataset(tmp_path / "bought", "untold", seconds=80.0, trained_seconds=None),
        ],
    )
    assert cost["scoring"] == {"seconds": 150.0, "gpu_hours": 2.0}
    assert cost["reference_training"] == {"seconds": 1100.0, "gpu_hours": 0.5}
    assert list(cost["datasets"]) == [f"data.streams.{name}" for name in ("web", "books", "code", "bought")]
    assert "reference_training" not in str(cost["datasets"]["data.streams.bought"])
