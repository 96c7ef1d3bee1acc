"""Checkpoints: written by all ranks, complete once a list of their files with sizes and hashes lies beside them."""

import hashlib
import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from megaslm.data.durable import write_file
from megaslm.engine.distributed import World, gather_objects, on_first_rank, wait_for_all
from megaslm.engine.zero import ZeroEngine
from megaslm.errors import CheckpointError
from megaslm.slm.recent_cuts import AT_START, SelectionState

COMPLETE = "COMPLETE"
PROGRESS = "progress.json"
_STEP_FOLDER = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    step: int = 0
    selected_tokens: int = 0
    """Targets trained on, over all ranks."""
    seconds: float = 0.0
    """Wall time of training, over all attempts that count."""
    world_size: int = 0
    """Ranks that wrote the checkpoint."""
    selection: SelectionState = AT_START
    """What the objective remembers of the steps before."""
    rows_read: dict[str, int] = field(default_factory=dict)
    """Of each domain, over all ranks; version 0.1.0 did not count them."""


def save_checkpoint(checkpoints: Path, engine: ZeroEngine, progress: Progress, world: World, *, keep_last: int) -> Path:
    """Writes a checkpoint; called on all ranks. Older ones than the newest `keep_last` go once it is complete."""
    folder = checkpoints / f"step-{progress.step:08d}"
    on_first_rank(lambda: _start(folder))
    engine.save(folder)
    wait_for_all()
    on_first_rank(lambda: write_file(folder / PROGRESS, json.dumps(asdict(progress))))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    described = _described_by_all(folder, files, world)
    on_first_rank(lambda: write_file(folder / COMPLETE, json.dumps(described, indent=1) + "\n"))
    on_first_rank(lambda: _prune(checkpoints, keep_last))
    return folder


def load_checkpoint(folder: Path, engine: ZeroEngine, world: World) -> Progress:
    """Reads a checkpoint back after comparing every file with its list; called on all ranks.

    Raises:
        CheckpointError: a file is missing or differs, or the checkpoint is of another number of ranks.
    """
    progress = read_progress(folder)
    if progress.world_size != world.size:
        raise CheckpointError(
            f"{folder}: written by {progress.world_size} ranks; this run has {world.size}: resume on "
            f"{progress.world_size}, or start a run with model.from_run from its weights"
        )
    check_files(folder, world)
    engine.load(folder)
    return progress


def complete_checkpoints(checkpoints: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(
        folder
        for folder in checkpoints.glob("step-*")
        if _STEP_FOLDER.fullmatch(folder.name) and (folder / COMPLETE).is_file()
    )


def read_progress(folder: Path) -> Progress:
    """Where the run stood when the checkpoint was written."""
    stored = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    # Version 0.1.0 remembered nothing of the steps before.
    selection = stored.pop("selection", asdict(AT_START))
    return Progress(**stored, selection=SelectionState(tuple(selection["cuts"]), selection["surplus"]))


def check_files(folder: Path, world: World) -> None:
    """Compares every file with the checkpoint's list; called on all ranks, which share the work.

    Raises:
        CheckpointError: a file is missing, or has another size or content.
    """
    listed: dict[str, list[object]] = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
    missing = [name for name in listed if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: {', '.join(missing)} is missing; remove this checkpoint to use the one before"
        )
    found = _described_by_all(folder, [folder / name for name in listed], world)
    wrong = [name for name in listed if list(found[name]) != listed[name]]
    if wrong:
        raise CheckpointError(
            f"{folder}: {', '.join(wrong)} is not what was written; remove this checkpoint to use the one before"
        )


def _start(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _described_by_all(folder: Path, files: list[Path], world: World) -> dict[str, list[object]]:
    """Size and SHA-256 of each file, the hashing shared out among the ranks."""
    mine = {str(path.relative_to(folder)): _described(path) for path in files[world.rank :: world.size]}
    return {name: described for share in gather_objects(mine) for name, described in sorted(share.items())}


def _described(path: Path) -> list[object]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _prune(checkpoints: Path, keep_last: int) -> None:
    for folder in complete_checkpoints(checkpoints)[:-keep_last]:
        # Without its list it is no checkpoint any more, whatever happens before it is gone.
        (folder / COMPLETE).unlink()
        shutil.rmtree(folder)
