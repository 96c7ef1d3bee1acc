"""The names of a run's files, and whether a run may begin in a folder."""

import os
from pathlib import Path

from megaslm.errors import CheckpointError, ConfigError
from megaslm.files import looked_in

CONFIG = "config.yaml"
"""A run's resolved configuration, in the run folder and in each checkpoint."""
CHECKPOINTS = "checkpoints"
"""The folder in a run folder that holds one folder per checkpoint."""
COMPLETE = "COMPLETE"
"""The list of a checkpoint's files. Without it, the checkpoint is unfinished."""
COMPLETE_CHECKPOINTS = f"{CHECKPOINTS}/step-*/{COMPLETE}"
"""The files that mark the complete checkpoints of a run folder."""
LAYOUT = "layout.json"
"""The file of a checkpoint that says how its tensors lie in its files."""
LOCK = ".lock"
"""The file in a run folder that the job which trains in it has locked."""
MEMORY = "memory.json"
"""The file in a run folder with the memory that was predicted and measured."""
METRICS = "metrics.jsonl"
"""The file in a run folder with one line per step."""
PROGRESS = "progress.json"
"""The file of a checkpoint with all that a resume needs beside weights and moments."""
PROBE = "probe"
"""The folder in a run folder with the losses of its probe rows, one file per measurement."""
SMOKE = "smoke.json"
"""The result of a smoke test, in a folder of its own beside the run's."""
SMOKE_ENDING = ".smoke"
"""What the name of that folder has more than the run's."""


def require_folder(run_dir: Path) -> None:
    """Raises ConfigError where something else than a folder is at `run_dir`."""
    if os.path.lexists(run_dir) and not run_dir.is_dir():
        raise ConfigError(f"run_dir = {run_dir}: is not a folder; choose another run_dir, or rename what is there")


def require_no_run(run_dir: Path) -> None:
    """Raises ConfigError where a run has begun in the folder."""
    if (run_dir / CONFIG).exists():
        raise ConfigError(
            f"run_dir = {run_dir}: holds a run already; resume it with --resume, or choose another run_dir"
        )


def how_to_start_again(run_dir: Path) -> str:
    """The advice for a run that has stopped: whether its next start needs --resume, and where that begins."""
    if any(run_dir.glob(COMPLETE_CHECKPOINTS)):
        return "start again with --resume"
    if (run_dir / CONFIG).exists():
        return "start again with --resume, from the beginning"
    return "start again"


def measurement_file(folder: Path, step: int) -> Path:
    """The file in the folder `PROBE` with the losses of the probe rows after a step."""
    return folder / f"step-{step:08d}.safetensors"


def require_run_folder(folder: Path) -> None:
    """Raises CheckpointError where a folder is missing, or is not that of a run."""
    refuse_smoke_test(folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: {'is a file' if folder.exists() else 'no such folder'}{looked_in(folder)}; name the folder of "
            "a run (run_dir of its configuration)"
        )
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder}: holds no {CONFIG}; a run folder was expected")


def refuse_smoke_test(folder: Path) -> None:
    """Raises CheckpointError where a folder is that of a smoke test."""
    if (folder / SMOKE).exists():
        run = str(folder).removesuffix(SMOKE_ENDING)
        raise CheckpointError(
            f"{folder}: is the folder of a smoke test, which is no run and has no model; "
            + (f"name the run's own folder, {run}" if run != str(folder) else "name the run's own folder")
        )
