"""The run that faults happen to, and what is left of it at the end: its weights."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from megaslm.config.schema import RunConfig
from megaslm.training.export import export
from megaslm.training.train import train
from tests.forks import fork_ranks, statuses_of
from tests.injection import faults
from tests.s3 import Bucket
from tests.toy import SEQ_LEN, run_config

ROWS_PER_STEP = 8
STEPS = 8
STEPS_BETWEEN_CHECKPOINTS = 4
_TOKENS_PER_STEP = ROWS_PER_STEP * SEQ_LEN
LONGER = ("--allow-changed", "train.total_tokens")
"""Options of `train`: the run may get another length."""


@dataclass(frozen=True)
class Material:
    """What runs read."""

    tokens: Path
    scored: Path

    def config(self, run_dir: Path, *, steps: int = STEPS, **sections: dict[str, Any]) -> RunConfig:
        """SLM on two ranks with two micro-steps and a checkpoint every four steps; `sections` change settings."""
        settings: dict[str, dict[str, Any]] = {
            "train": {
                "objective": "slm",
                "schedule": "constant",
                "total_tokens": steps * _TOKENS_PER_STEP,
                "micro_batch_rows": 2,
            },
            "checkpoint": {"every_tokens": STEPS_BETWEEN_CHECKPOINTS * _TOKENS_PER_STEP},
            "validation": {"sets": {"held": {"dataset": str(self.tokens)}}},
            "log": {"every_steps": 1},
        }
        for name, changes in sections.items():
            settings[name] = {**settings.get(name, {}), **changes}
        return run_config(run_dir, self.scored, **settings)


def upload(dataset: Path, bucket: Bucket) -> str:
    """Puts a dataset into object storage and gives its URL."""
    for path in sorted(dataset.rglob("*")):
        if path.is_file():
            bucket.put(f"{dataset.name}/{path.relative_to(dataset).as_posix()}", path.read_bytes())
    return bucket.url(dataset.name)


def tokens_of(steps: int) -> int:
    """Targets in so many steps."""
    return steps * _TOKENS_PER_STEP


def run_ranks(config: RunConfig, *, injected: str = "", world_size: int = 2) -> list[int]:
    """Starts or resumes a run in forked ranks and gives their exit statuses; nothing starts them again."""
    return statuses_of(start_ranks(config, injected=injected, world_size=world_size))


def start_ranks(
    config: RunConfig, *, injected: str = "", world_size: int = 2, before: Callable[[], object] = lambda: None
) -> list[int]:
    """Starts or resumes a run in forked ranks, each of which calls `before` first."""

    def run() -> None:
        torch.set_num_threads(1)
        faults.arm(injected)
        before()
        train(config, resume=True, allow_changed=LONGER[1:])

    return fork_ranks(world_size, run)


def weights_sha256(config: RunConfig) -> str:
    """Of the tensors of a run's newest checkpoint, as an export has them."""
    with TemporaryDirectory() as folder:
        export(Path(config.run_dir), Path(folder) / "model")
        return hashlib.sha256((Path(folder) / "model" / "model.safetensors").read_bytes()).hexdigest()


def records(config: RunConfig, kind: str = "step") -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that are of this kind."""
    lines = (Path(config.run_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def steps_made(output: str) -> list[int]:
    """The steps that a run has told of on its console, in order; a step that was lost is told of twice."""
    return [int(step) for step in re.findall(r" · step (\d+)/\d+ · loss ", output)]
