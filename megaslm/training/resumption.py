"""Whether a run may start or resume in its folder, by the data and the settings that it had so far.

Imports no torch: the command looks before its slow imports, and the ranks look again.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from megaslm.config.load import load
from megaslm.config.plan import total_steps
from megaslm.config.run_files import (
    COMPLETE_CHECKPOINTS,
    CONFIG,
    PROBE,
    PROGRESS,
    how_to_start_again,
    measurement_file,
    refuse_smoke_test,
    require_no_run,
)
from megaslm.config.schema import RunConfig
from megaslm.config.section import Split
from megaslm.dataset.fit import ReadDataset
from megaslm.dataset.manifest import Manifest
from megaslm.errors import CheckpointError, ConfigError
from megaslm.training.changes import check_changes
from megaslm.training.checkpoints.file_list import read_file_list


def check_run(
    config: RunConfig, datasets: Sequence[ReadDataset] | None, *, resume: bool, allow_changed: Collection[str] = ()
) -> list[str]:
    """Checks whether a run may start or resume in its folder. Writes nothing.

    Args:
        config: the run. Its length is in tokens, except where `datasets` is None.
        datasets: what it trains on. None where their manifests cannot be read here: then the settings alone are
            compared, and those of a run whose length is in epochs not at all.
        resume: whether it may resume.
        allow_changed: the settings that may have changed although they shape the optimisation.

    Returns:
        The settings that have changed since the run began, one line each.

    Raises:
        ConfigError: the folder holds a run and `resume` is false, or a setting that may not change has changed.
        CheckpointError: the folder is that of a smoke test.
    """
    run = Path(config.run_dir)
    refuse_smoke_test(run)
    if not (run / CONFIG).exists():
        return []
    if not resume:
        _refuse_second_start(run)
    if datasets is None and config.train.epochs is not None:
        return []
    longer = [] if datasets is None else _check_same_data(run, datasets)
    has_learned = any(run.glob(COMPLETE_CHECKPOINTS))
    before = load(RunConfig, run / CONFIG).value
    return [*longer, *check_changes(before, config, allow_changed, has_learned=has_learned, data_changes=longer)]


def _refuse_second_start(run: Path) -> None:
    """Raises ConfigError: the folder holds a run, which may be finished."""
    before = None
    # The configuration of another build need not be readable.
    with suppress(ConfigError):
        before = load(RunConfig, run / CONFIG).value.model_copy(update={"run_dir": str(run)})
    if before is not None and is_finished(before):
        raise ConfigError(
            f"run_dir = {run}: the run in it is finished; choose another run_dir, or go on with its model: "
            "`megaslm export`"
        )
    require_no_run(run)


def no_step_made(run_dir: str) -> str:
    """What is lost by a stop before the first step since a start: nothing; and how the run is started again."""
    return f"no step was made since the start: {how_to_start_again(Path(run_dir))}"


def is_finished(config: RunConfig) -> bool:
    """Whether nothing is left to do for a run whose length is in tokens: its last step is saved, and all is measured.

    False where a setting has changed, which the ranks judge. The files of the newest checkpoint are looked at by their
    sizes only. Where one is not as written, the run resumes from an earlier checkpoint.
    """
    run, steps = Path(config.run_dir), total_steps(config)
    newest = max((complete.parent for complete in run.glob(COMPLETE_CHECKPOINTS)), default=None)
    if newest is None or not (run / CONFIG).is_file():
        return False
    before = load(RunConfig, run / CONFIG).value
    # A run folder may move.
    if before.model_copy(update={"run_dir": config.run_dir}) != config:
        return False
    if config.probe.every_tokens is not None and not measurement_file(run / PROBE, steps).is_file():
        return False
    try:
        progress = json.loads((newest / PROGRESS).read_text(encoding="utf-8"))
        is_whole = all((newest / name).stat().st_size == file.size for name, file in read_file_list(newest).items())
    except (OSError, ValueError, CheckpointError):
        # The ranks tell what is wrong with it.
        return False
    return is_whole and progress.get("step") == steps and not progress.get("validation_is_due")


def identity(manifest: Manifest) -> dict[str, str | None]:
    """What must stay the same of a dataset while a run reads it."""
    return {
        "tokens_sha256": manifest.tokens_fingerprint(),
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "reference_weights_sha256": None if manifest.reference is None else manifest.reference.weights_sha256,
        **{f"{name}_weights_sha256": found.weights_sha256 for name, found in manifest.losses.items()},
    }


def _check_same_data(run: Path, datasets: Sequence[ReadDataset]) -> list[str]:
    """A line for each dataset that has become longer. Raises ConfigError where the data is not the same otherwise."""
    before = _recorded_identity(run)
    now = {dataset.setting: identity(dataset.manifest) for dataset in datasets}
    if list(before) != list(now):
        raise ConfigError(
            f"{run}: the run read {', '.join(before)} so far, in this order; now it would read {', '.join(now)}: "
            "choose another run_dir, or undo the change"
        )
    longer = [dataset for dataset in datasets if _is_longer(dataset, before[dataset.setting])]
    for dataset in longer:
        del now[dataset.setting]["tokens_sha256"]
    changes = [
        f"{setting}.{key}: {before[setting].get(key)} → {value}"
        for setting, identified in now.items()
        for key, value in identified.items()
        if before[setting].get(key) != value
    ]
    if changes:
        what_to_do = "undo the change, or choose another run_dir"
        raise ConfigError("\n  ".join([f"{run}: the run read other training data so far; {what_to_do}", *changes]))
    if longer:
        _check_extents_are_noted(run)
    return [_growth(dataset, before[dataset.setting]["parts"]) for dataset in longer]


def _is_longer(dataset: ReadDataset, before: Mapping[str, Any]) -> bool:
    """Whether the dataset begins with all its earlier rows and has more."""
    parts, had = before.get("parts"), before["tokens_sha256"]
    if parts is None or dataset.manifest.tokens_fingerprint() == had:
        return False
    same_domains = set(dataset.domains) <= set(parts["train"])
    return same_domains and dataset.manifest.tokens_fingerprint(parts) == had


def _growth(dataset: ReadDataset, before: Mapping[Split, Mapping[str, int]]) -> str:
    counts = dataset.manifest.part_counts()
    changes = [
        f"{split}/{domain} {before.get(split, {}).get(domain, 0)} → {count} parts"
        for split, domains in counts.items()
        for domain, count in domains.items()
        if before.get(split, {}).get(domain, 0) != count
    ]
    return f"{dataset.setting} has become longer: {', '.join(changes)}"


def _check_extents_are_noted(run: Path) -> None:
    # It imports torch. Data that has become longer is rare.
    from megaslm.training.checkpoints.progress import read_progress

    for complete in sorted(run.glob(COMPLETE_CHECKPOINTS)):
        progress = read_progress(complete.parent)
        if progress.step and not progress.extents:
            raise CheckpointError(
                f"{complete.parent}: was written by a version that did not record the length of the training data; "
                "resume with the old data until the next checkpoint, remove this one, and then use the longer data"
            )


def _recorded_identity(run: Path) -> dict[str, dict[str, Any]]:
    stored = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    # Version 0.1.0 read one dataset.
    datasets: dict[str, dict[str, Any]] = stored.get("datasets") or {"data.train": stored["data"]}
    return datasets
