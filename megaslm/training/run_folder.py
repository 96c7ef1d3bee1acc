"""A run's folder: its paths, the check whether a run may resume in it, and its lock.

One job at a time trains in it: a second job would remove the first job's unfinished saves as leftovers.
"""

import errno
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from megaslm import __version__
from megaslm.config.load import load
from megaslm.config.run_files import CHECKPOINTS, CONFIG, LOCK, METRICS, refuse_smoke_test, require_no_run
from megaslm.config.schema import RunConfig
from megaslm.config.section import Split
from megaslm.config.source import dump
from megaslm.dataset.manifest import TOKENIZER, Manifest
from megaslm.engine.distributed import World, on_first_rank
from megaslm.errors import CheckpointError, ConfigError
from megaslm.files import Busy, cannot_be_made, locked, write_file
from megaslm.model.export import describe_model
from megaslm.model.selective_lm import CausalLM
from megaslm.stream.mixture import TRAINING
from megaslm.training.changes import check_changes
from megaslm.training.checkpoints.progress import read_progress
from megaslm.training.checkpoints.store import complete_checkpoints
from megaslm.training.training_data import TrainingData, TrainingDataset

_PATIENCE_SECONDS = 30.0
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
    def tensorboard(self) -> Path:
        """TensorBoard's events."""
        return self.path / "tensorboard"

    @property
    def cost(self) -> Path:
        """Tokens, seconds and GPU-hours."""
        return self.path / "cost.json"

    def config(self) -> RunConfig:
        """The resolved configuration. Raises CheckpointError where this is not a run folder."""
        refuse_smoke_test(self.path)
        if not (self.path / CONFIG).is_file():
            raise CheckpointError(f"{self.path}: holds no {CONFIG}; a run folder was expected")
        return load(RunConfig, self.path / CONFIG).value


def check_run(config: RunConfig, data: TrainingData, *, resume: bool, allow_changed: Collection[str] = ()) -> list[str]:
    """Checks whether a run may start or resume in its folder. Writes nothing.

    `allow_changed` are the settings that may have changed although they shape the optimisation.

    Returns:
        The settings that have changed since the run began, one line each.

    Raises:
        ConfigError: the folder holds a run and `resume` is false, or a setting that may not change has changed.
        CheckpointError: the folder is that of a smoke test.
    """
    run = RunFolder(Path(config.run_dir))
    refuse_smoke_test(run.path)
    if not (run.path / CONFIG).exists():
        return []
    if not resume:
        require_no_run(run.path)
    longer = _check_same_data(run, data)
    has_learned = bool(complete_checkpoints(run.checkpoints))
    changes = check_changes(run.config(), config, allow_changed, has_learned=has_learned, data_changes=longer)
    return [*longer, *changes]


def open_run(config: RunConfig, data: TrainingData, lm: CausalLM, dtype: torch.dtype, *, origin: Path | None) -> None:
    """Makes the run folder and writes the files that an export needs beside weights.

    `origin` is the folder that the model was loaded from. Raises ModelError where an export could not be opened.
    """
    run = RunFolder(Path(config.run_dir))
    run.path.mkdir(parents=True, exist_ok=True)
    first = data.first
    bos = first.manifest.packing.bos
    describe_model(lm, dtype, first.source.path / TOKENIZER, run.model_description, origin=origin, bos=bos)


def record_run(config: RunConfig, data: TrainingData) -> None:
    """Writes provenance and the resolved configuration, with which the folder holds a run.

    Called when all checks have passed: what a refused resume asked for is not what the run has learned with.
    """
    run = RunFolder(Path(config.run_dir))
    write_file(run.path / "manifest.json", json.dumps(_provenance(data), indent=1) + "\n")
    write_file(run.path / CONFIG, dump(config))


def _check_same_data(run: RunFolder, data: TrainingData) -> list[str]:
    """A line for each dataset that has become longer. Raises ConfigError where the data is not the same otherwise."""
    before = _recorded_identity(run)
    now = {dataset.setting: _identity(dataset.manifest) for dataset in data.datasets}
    if list(before) != list(now):
        raise ConfigError(
            f"{run.path}: the run read {', '.join(before)} so far, in this order; now it would read {', '.join(now)}: "
            "choose another run_dir, or undo the change"
        )
    longer = [dataset for dataset in data.datasets if _is_longer(dataset, before[dataset.setting])]
    for dataset in longer:
        del now[dataset.setting]["tokens_sha256"]
    changed = [
        f"{setting}.{key}: {before[setting].get(key)} → {value}"
        for setting, identity in now.items()
        for key, value in identity.items()
        if before[setting].get(key) != value
    ]
    if changed:
        raise ConfigError(f"{run.path}: the run read other training data so far\n" + "\n".join(changed))
    if longer:
        _check_extents_are_noted(run)
    return [_growth(dataset, before[dataset.setting]["parts"]) for dataset in longer]


def _is_longer(dataset: TrainingDataset, before: Mapping[str, Any]) -> bool:
    """Whether the dataset begins with all its earlier rows and has more."""
    parts, had = before.get("parts"), before["tokens_sha256"]
    if parts is None or dataset.manifest.tokens_fingerprint() == had:
        return False
    same_domains = set(dataset.domains) <= set(parts[TRAINING])
    return same_domains and dataset.manifest.tokens_fingerprint(parts) == had


def _growth(dataset: TrainingDataset, before: Mapping[Split, Mapping[str, int]]) -> str:
    counts = dataset.manifest.part_counts()
    changes = [
        f"{split}/{domain} {before.get(split, {}).get(domain, 0)} → {count} parts"
        for split, domains in counts.items()
        for domain, count in domains.items()
        if before.get(split, {}).get(domain, 0) != count
    ]
    return f"{dataset.setting} has become longer: {', '.join(changes)}"


def _check_extents_are_noted(run: RunFolder) -> None:
    for checkpoint in complete_checkpoints(run.checkpoints):
        progress = read_progress(checkpoint.folder)
        if progress.step and not progress.extents:
            raise CheckpointError(
                f"{checkpoint.folder}: was written by a version that did not record the length of the training data; "
                "resume with the old data until the next checkpoint, remove this one, and then use the longer data"
            )


def _recorded_identity(run: RunFolder) -> dict[str, dict[str, Any]]:
    stored = json.loads((run.path / "manifest.json").read_text(encoding="utf-8"))
    # Version 0.1.0 read one dataset.
    datasets: dict[str, dict[str, Any]] = stored.get("datasets") or {"data.train": stored["data"]}
    return datasets


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
        **_identity(dataset.manifest),
        "parts": dataset.manifest.part_counts(),
    }


def _identity(manifest: Manifest) -> dict[str, str | None]:
    return {
        "tokens_sha256": manifest.tokens_fingerprint(),
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "reference_weights_sha256": None if manifest.reference is None else manifest.reference.weights_sha256,
    }


@contextmanager
def alone_in(run_folder: Path, world: World, say: Callable[[str], None]) -> Iterator[None]:
    """Keeps other jobs out of the folder within the context; called on all ranks.

    Waits half a minute for an attempt that is being killed. If the file system has no locks, warns through `say`.

    Raises ConfigError where another job still trains in it.
    """
    with ExitStack() as held:
        for note in on_first_rank(lambda: list(take(run_folder, held, patience_seconds=_PATIENCE_SECONDS))):
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
                raise ConfigError(
                    f"run_dir = {run_folder}: another job is training in it; wait for its end, or choose another "
                    "run_dir"
                ) from error
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
