"""The checkpoints of a run: list them, check them, prune them and resume from one."""

import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from megaslm.config.retention import Retention
from megaslm.config.run_files import COMPLETE
from megaslm.engine.distributed import World, gather_objects, on_first_rank
from megaslm.engine.heartbeat import heartbeat
from megaslm.engine.training_state import TrainingState
from megaslm.errors import CheckpointError
from megaslm.files import UNFINISHED
from megaslm.training.checkpoints.file_list import Corruption, FileList, corruption_of, read_file_list
from megaslm.training.checkpoints.progress import Progress, read_progress
from megaslm.training.checkpoints.state_files import load_state

_STEP_FOLDER = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """A folder with the file list COMPLETE."""

    folder: Path
    step: int


def step_folder(checkpoints: Path, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return checkpoints / f"step-{step:08d}"


def complete_checkpoints(checkpoints: Path) -> list[Checkpoint]:
    """The complete checkpoints of a run, oldest first. They are not checked for corruption."""
    found = [(folder, _STEP_FOLDER.fullmatch(folder.name)) for folder in checkpoints.glob("step-*")]
    return sorted(
        (
            Checkpoint(folder, int(name[1]))
            for folder, name in found
            if name is not None and (folder / COMPLETE).is_file()
        ),
        key=lambda checkpoint: checkpoint.step,
    )


def remove_unfinished(checkpoints: Path) -> None:
    """Removes the remains of interrupted saves."""
    for folder in checkpoints.glob(f"{UNFINISHED}step-*"):
        remove_folder(folder)
    for folder in checkpoints.glob("step-*"):
        if _STEP_FOLDER.fullmatch(folder.name) and not (folder / COMPLETE).is_file():
            remove_folder(folder)


def remove_checkpoint(folder: Path) -> None:
    """Removes a checkpoint, its file list first: an interrupted removal leaves no complete checkpoint."""
    (folder / COMPLETE).unlink(missing_ok=True)
    remove_folder(folder)


def remove_folder(folder: Path) -> None:
    """Removes a folder and its content, if it exists."""
    if folder.exists():
        shutil.rmtree(folder)


def prune(checkpoints: Path, retention: Retention, *, up_to_step: int, corrupt: Sequence[int] = ()) -> list[Path]:
    """Removes what `retention` does not keep among the checkpoints up to a step. Corrupt ones stay and do not count.

    Returns:
        The removed folders.
    """
    counted = {
        checkpoint.step: checkpoint.folder
        for checkpoint in complete_checkpoints(checkpoints)
        if checkpoint.step <= up_to_step and checkpoint.step not in corrupt
    }
    gone = [counted[step] for step in retention.superfluous(list(counted))]
    for folder in gone:
        remove_checkpoint(folder)
    return gone


def find_corruption(checkpoint: Path, names: Callable[[str], bool] = lambda name: True) -> list[Corruption]:
    """Reads, in threads, the files of a checkpoint whose names `names` accepts. Returns the corrupt ones.

    Raises CheckpointError where the file list is missing or corrupt itself.
    """
    files = read_file_list(checkpoint)
    chosen = [name for name in files if names(name)]
    with ThreadPoolExecutor() as threads:
        return list(chain.from_iterable(threads.map(lambda name: corruption_of(checkpoint, [name], files), chosen)))


def check_whole(checkpoint: Path, names: Callable[[str], bool] = lambda name: True) -> None:
    """Raises CheckpointError where a file whose name `names` accepts is corrupt or missing."""
    corruption = find_corruption(checkpoint, names)
    if corruption:
        raise CheckpointError(f"{checkpoint}: {describe_corruption(corruption)}; use another checkpoint of the run")


def describe_corruption(corruption: Sequence[Corruption]) -> str:
    """The corrupt files and what was found, in one line."""
    return ", ".join(f"{one.name} {one.found}" for one in corruption)


def check_sizes(folder: Path, files: FileList) -> None:
    """Raises CheckpointError where a file of an unfinished checkpoint has another size than was written."""
    for name, described in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else 0
        if size != described.size:
            raise CheckpointError(f"{path}: has {size:,} bytes; {described.size:,} were written")


@dataclass(frozen=True)
class Resumed:
    """The state that a run resumes from."""

    progress: Progress
    corrupt: tuple[int, ...] = ()
    """Steps of newer checkpoints that are corrupt. They are kept."""


def resume(checkpoints: Path, state: TrainingState, world: World, say: Callable[[str], None]) -> Resumed:
    """Loads the newest checkpoint that is not corrupt. A run without checkpoints starts at its beginning.

    Called on all ranks. Their number may differ from the number that wrote the checkpoint.

    Args:
        checkpoints: the folder of the run's checkpoints; remains of an interrupted save are removed from it.
        state: the state to overwrite.
        world: the ranks.
        say: prints a line, on the first rank.

    Raises:
        CheckpointError: all checkpoints are corrupt, or they are of another model.
    """
    on_first_rank(lambda: remove_unfinished(checkpoints))
    found = on_first_rank(lambda: complete_checkpoints(checkpoints))
    corrupt: list[int] = []
    for checkpoint in reversed(found):
        heartbeat("load", checkpoint.step)
        problem = problem_of(checkpoint, world)
        if problem is None:
            load_state(checkpoint.folder, state)
            say(f"resumes after step {checkpoint.step}, from {checkpoint.folder}")
            return Resumed(read_progress(checkpoint.folder), tuple(corrupt))
        corrupt.append(checkpoint.step)
        say(f"warning: {problem}; this checkpoint is kept, and the one before it is tried")
    if corrupt:
        raise CheckpointError(
            f"{checkpoints}: all {len(corrupt)} checkpoints are corrupt (see above); restore one from a copy, or start "
            "again in another run_dir"
        )
    return Resumed(Progress())


def problem_of(checkpoint: Checkpoint, world: World) -> str | None:
    """What is wrong with the files of a checkpoint, the same on all ranks, which share the reading. None if nothing."""
    # Only the first rank reads the list: all ranks must resume from the same checkpoint.
    files = on_first_rank(lambda: _list_or_problem(checkpoint.folder))
    if isinstance(files, str):
        return files
    by_size = sorted(files, key=lambda name: (-files[name].size, name))
    mine = corruption_of(checkpoint.folder, by_size[world.rank :: world.size], files)
    corruption = list(chain.from_iterable(gather_objects(mine)))
    return f"{checkpoint.folder}: {describe_corruption(corruption)}" if corruption else None


def _list_or_problem(checkpoint: Path) -> FileList | str:
    try:
        return read_file_list(checkpoint)
    except CheckpointError as error:
        return str(error)
