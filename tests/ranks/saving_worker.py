"""The job of test_saved_files: a save of a small model, and what this rank synced and renamed in it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from megaslm.config.retention import Retention
from megaslm.engine.cpu_group import CpuGroup
from megaslm.engine.distributed import World
from megaslm.engine.training_state import TrainingState
from megaslm.training.checkpoints.progress import Progress
from megaslm.training.checkpoints.saver import Saver
from tests.disk_order import Call, record_disk_order

STEP = 3


def save(world: World, checkpoints: Path) -> list[Call]:
    """The job."""
    model = nn.Linear(3, 2)
    saver = Saver(
        checkpoints,
        TrainingState(model, torch.optim.AdamW(model.parameters())),
        "seed: 1\n",
        world,
        CpuGroup(world),
        retention=Retention(1, None),
        max_failed=1,
        corrupt=(),
        say=lambda line: None,
        on_saved=lambda progress: None,
        how_to_start_again=lambda: "start again",
    )
    with pytest.MonkeyPatch.context() as patch:
        calls = record_disk_order(patch)
        saver.begin(Progress(step=STEP))
        saver.wait()
        return list(calls)
