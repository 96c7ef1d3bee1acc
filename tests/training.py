"""Training runs in ranks that start in a moment, and what they leave."""

import json
from pathlib import Path

import torch
from torch import Tensor

from megaslm.config.run_files import PROGRESS
from megaslm.config.schema import RunConfig
from megaslm.training.checkpoints.file_list import describe, read_file_list, write_file_list
from megaslm.training.checkpoints.state_files import StoredWeights
from megaslm.training.checkpoints.store import complete_checkpoints
from megaslm.training.train import train
from tests.forks import fork_ranks, statuses_of

LENGTHENED = ("train.total_tokens",)
"""What has changed where a run of fewer steps stands for one that was cut off."""


def start_training(
    config: RunConfig, *, world_size: int = 1, resume: bool = False, allow_changed: tuple[str, ...] = LENGTHENED
) -> list[int]:
    """The processes of a run."""
    return fork_ranks(world_size, lambda: train(config, resume=resume, allow_changed=allow_changed))


def run_training(
    config: RunConfig,
    *,
    world_size: int = 1,
    resume: bool = False,
    allow_changed: tuple[str, ...] = LENGTHENED,
    expect_status: int = 0,
) -> None:
    """Trains to the end."""
    processes = start_training(config, world_size=world_size, resume=resume, allow_changed=allow_changed)
    statuses = statuses_of(processes)
    assert statuses == [expect_status] * world_size


def with_steps(config: RunConfig, steps: int) -> RunConfig:
    """The same run, of so many steps."""
    length = {"total_tokens": steps * config.train.global_batch_tokens, "epochs": None}
    return changed(config, train=length)


def changed(config: RunConfig, **sections: dict[str, object]) -> RunConfig:
    """The same run with other settings in some sections."""
    settings = config.model_dump()
    for name, changes in sections.items():
        settings[name] = {**settings[name], **changes}
    return RunConfig.model_validate(settings)


def losses(run: Path) -> list[float]:
    """The loss of each step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]


def last_weights(run: Path) -> dict[str, Tensor]:
    """The weights of the newest checkpoint."""
    return dict(StoredWeights(complete_checkpoints(run / "checkpoints")[-1].folder))


def are_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether all weights are the same, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def forget_in_progress(checkpoint: Path, key: str) -> None:
    """Makes a checkpoint one of a build that did not note `key` yet."""
    path = checkpoint / PROGRESS
    stored = json.loads(path.read_text())
    del stored[key]
    path.write_text(json.dumps(stored))
    write_file_list(checkpoint, {**read_file_list(checkpoint), PROGRESS: describe(path)})
