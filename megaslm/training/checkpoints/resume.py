"""Going on from the newest checkpoint that is as it was written."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from megaslm.engine.distributed import World, gather_objects, on_first_rank
from megaslm.engine.places import reach
from megaslm.engine.state_pieces import TrainingState
from megaslm.errors import CheckpointError
from megaslm.training.checkpoints.file_list import FileList, damage_of, read_file_list
from megaslm.training.checkpoints.progress import Progress, read_progress
from megaslm.training.checkpoints.state_files import load_state
from megaslm.training.checkpoints.store import (
    Checkpoint,
    complete_checkpoints,
    describe_damage,
    remove_unfinished,
)


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on."""

    progress: Progress
    damaged: tuple[int, ...] = ()
    """Steps of newer checkpoints that are not as they were written; they are left as they are."""


def resume(checkpoints: Path, state: TrainingState, world: World, say: Callable[[str], None]) -> Resumed:
    """Brings back the state of the newest checkpoint that is whole; a run without any starts at its beginning.

    Called on all ranks, which may be more or fewer than wrote it.

    Args:
        checkpoints: the folder of the run's checkpoints; what a cut-off save has left in it is removed.
        state: what is overwritten.
        world: the ranks.
        say: prints a line, on the first rank.

    Raises:
        CheckpointError: there are checkpoints and none of them is whole, or they are of another model.
    """
    on_first_rank(lambda: remove_unfinished(checkpoints))
    found = on_first_rank(lambda: complete_checkpoints(checkpoints))
    damaged: list[int] = []
    for checkpoint in reversed(found):
        reach("load", checkpoint.step)
        problem = _problem(checkpoint, world)
        if problem is None:
            load_state(checkpoint.folder, state)
            say(f"goes on after step {checkpoint.step}, from {checkpoint.folder}")
            return Resumed(read_progress(checkpoint.folder), tuple(damaged))
        damaged.append(checkpoint.step)
        say(f"warning: {problem}; it is left as it is, and the one before is used")
    if damaged:
        raise CheckpointError(
            f"{checkpoints}: none of its {len(damaged)} checkpoints is as it was written (above); restore one from a "
            "copy, or start again in another run_dir"
        )
    return Resumed(Progress())


def _problem(checkpoint: Checkpoint, world: World) -> str | None:
    """What is wrong with a checkpoint, the same on all ranks, which share the reading."""
    # One rank's view of the list is everybody's: all have to come to the same checkpoint.
    files = on_first_rank(lambda: _list_or_problem(checkpoint.folder))
    if isinstance(files, str):
        return files
    by_size = sorted(files, key=lambda name: (-files[name].size, name))
    mine = damage_of(checkpoint.folder, by_size[world.rank :: world.size], files)
    damage = list(chain.from_iterable(gather_objects(mine)))
    return f"{checkpoint.folder}: {describe_damage(damage)}" if damage else None


def _list_or_problem(checkpoint: Path) -> FileList | str:
    try:
        return read_file_list(checkpoint)
    except CheckpointError as error:
        return str(error)
