"""Saves that are cut off: where to, and what has to hold afterwards."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from megaslm.config.schema import RunConfig
from megaslm.files import UNFINISHED
from megaslm.training.checkpoints.store import complete_checkpoints, find_corruption
from tests.faults.runs import STEPS, run_ranks, weights_sha256

_FILE_WORK = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def on_file_work(checkpoints: Path, rank: int, call: Callable[[], object]) -> None:
    """In that rank, calls `call` before everything that it does with files of the last step's checkpoint."""
    folder = f"step-{STEPS:08d}"

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in _FILE_WORK and str(arguments[0]).startswith(str(checkpoints)) and folder in str(arguments[0]):
            call()

    if os.environ["RANK"] == str(rank):
        sys.addaudithook(hook)


def unfinished_saves(config: RunConfig) -> list[Path]:
    """The folders of saves that have not come to their end."""
    return list((Path(config.run_dir) / "checkpoints").glob(f"{UNFINISHED}*"))


def resumes_from_a_whole_one(config: RunConfig, undisturbed: str) -> bool:
    """Whether the newest checkpoint is whole and the run comes from there to these weights, leaving nothing behind."""
    *_, newest = complete_checkpoints(Path(config.run_dir) / "checkpoints")
    if find_corruption(newest.folder) or run_ranks(config) != [0, 0]:
        return False
    return weights_sha256(config) == undisturbed and not unfinished_saves(config)
