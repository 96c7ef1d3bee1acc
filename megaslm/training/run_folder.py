"""A run's folder: its paths, its records, and its lock.

One job at a time trains in it: a second job would remove the first job's unfinished saves as leftovers.
"""

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from megaslm import __version__
from megaslm.config.load import load
from megaslm.config.run_files import CHECKPOINTS, CONFIG, LOCK, METRICS, require_run_folder
from megaslm.config.schema import RunConfig
from megaslm.config.source import dump
from megaslm.dataset.manifest import TOKENIZER
from megaslm.engine.distributed import World, on_first_rank
from megaslm.files import Busy, cannot_be_made, is_locked, locked, write_file
from megaslm.model.export import describe_model
from megaslm.model.selective_lm import CausalLM
from megaslm.training.occupied import PATIENCE_SECONDS, occupied, waits
from megaslm.training.resumption import identity
from megaslm.training.training_data import TrainingData, TrainingDataset

_NO_LOCKS_HERE = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """One folder per checkpoint."""
        return self.path / CHECKPOINTS

    @property
    def exports(self) -> Path:
        """Hugging Face folders made for runs that continue this one."""
        return self.path / "exports"

    @property
    def model_description(self) -> Path:
        """The model's config.json and the tokenizer: all that an export needs beside weights."""
        return self.path / "model"

    @property
    def metrics(self) -> Path:
        """One line per step."""
        return self.path / METRICS

    @property
    def logs(self) -> Path:
        """What libraries print, one file per rank."""
        return self.path / "logs"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's events, by whose path TensorBoard names the run."""
        # Of runs that version 0.1.0 began.
        earlier = self.path / "tensorboard"
        return earlier if earlier.is_dir() else self.path

    @property
    def cost(self) -> Path:
        """Tokens, seconds and GPU-hours."""
        return self.path / "cost.json"

    def config(self) -> RunConfig:
        """The resolved configuration. Raises CheckpointError where this is not a run folder."""
        require_run_folder(self.path)
        return load(RunConfig, self.path / CONFIG).value


def open_run(
    config: RunConfig, data: TrainingData, lm: CausalLM, dtype: torch.dtype, *, pretrained: Path | None
) -> None:
    """Makes the run folder and writes the files that an export needs beside weights.

    `pretrained` is the folder that the model was loaded from. Raises ModelError where an export could not be opened.
    """
    run = RunFolder(Path(config.run_dir))
    run.path.mkdir(parents=True, exist_ok=True)
    first = data.first
    bos = first.manifest.packing.bos
    describe_model(lm, dtype, first.source.path / TOKENIZER, run.model_description, pretrained=pretrained, bos=bos)


def record_run(config: RunConfig, data: TrainingData) -> None:
    """Writes provenance and the resolved configuration, with which the folder holds a run.

    Called when all checks have passed: what a refused resume asked for is not what the run has learned with.
    """
    run = RunFolder(Path(config.run_dir))
    write_file(run.path / "manifest.json", json.dumps(_provenance(data), indent=1) + "\n")
    write_file(run.path / CONFIG, dump(config))


def _provenance(data: TrainingData) -> dict[str, object]:
    return {
        "megaslm": __version__,
        "versions": {name: version(name) for name in ("torch", "deepspeed", "transformers", "mosaicml-streaming")},
        "datasets": {dataset.setting: _description(dataset) for dataset in data.datasets},
    }


def _description(dataset: TrainingDataset) -> dict[str, object]:
    reference = dataset.manifest.reference
    return {
        "folder": dataset.source.place,
        "name": dataset.manifest.name,
        "reference": None if reference is None else reference.name,
        **identity(dataset.manifest),
        "parts": dataset.manifest.part_counts(),
    }


@contextmanager
def alone_in(run_folder: Path, world: World, say: Callable[[str], None]) -> Iterator[None]:
    """Keeps other jobs out of the folder within the context; called on all ranks.

    Waits half a minute for an attempt that is being killed. If the file system has no locks, warns through `say`.

    Raises ConfigError where another job still trains in it.
    """
    with ExitStack() as held:
        if on_first_rank(lambda: is_locked(run_folder / LOCK)):
            say(waits(run_folder, PATIENCE_SECONDS))
        for note in on_first_rank(lambda: list(take(run_folder, held, patience_seconds=PATIENCE_SECONDS))):
            say(note)
        yield


def take(run_folder: Path, held: ExitStack, *, patience_seconds: float = 0.0) -> Iterator[str]:
    """Locks the folder until `held` closes. Then removes it again if nothing was written into it.

    Yields a warning if its file system has no locks.

    Raises ConfigError where another job held the lock for longer than `patience_seconds`, or the folder cannot be made.
    """
    # The lock is in the folder, not beside it: beside it, a container has a file system of its own.
    lock = run_folder / LOCK
    is_ours = False
    while not is_ours:
        made = [path for path in (lock, run_folder, *run_folder.parents) if not path.exists()]
        try:
            run_folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_be_made(f"run_dir = {run_folder}", error) from error
        with ExitStack() as attempt:
            try:
                file = attempt.enter_context(locked(lock, patience_seconds=patience_seconds, busy="busy"))
            except Busy as error:
                raise occupied(run_folder) from error
            except OSError as error:
                if error.errno not in _NO_LOCKS_HERE:
                    raise
                yield (
                    f"warning: {run_folder}: this file system has no locks ({error}); let only one job at a time train "
                    "in it"
                )
                return
            # A job that was refused removes the file, for which this one may have waited.
            is_ours = lock.exists() and os.path.samestat(os.fstat(file), lock.stat())
            if is_ours:
                held.enter_context(attempt.pop_all())
    held.callback(_remove_what_holds_nothing, run_folder, made)


def _remove_what_holds_nothing(run_folder: Path, made: Sequence[Path]) -> None:
    """Removes what a refused start has `made`, inner paths first."""
    if [path.name for path in run_folder.iterdir()] == [LOCK]:
        with suppress(OSError):
            for path in made:
                path.rmdir() if path.is_dir() else path.unlink()
