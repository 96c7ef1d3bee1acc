"""Whether a run may start or resume in its folder, by the data and the settings that it had so far.

Imports no torch: the command looks before its slow imports, and the ranks look again.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from megaslm.config.load import load
from megaslm.config.run_files import COMPLETE_CHECKPOINTS, CONFIG, refuse_smoke_test, require_no_run
from megaslm.config.schema import RunConfig
from megaslm.config.section import Split
from megaslm.dataset.fit import ReadDataset
from megaslm.dataset.manifest import Manifest
from megaslm.errors import CheckpointError, ConfigError
from megaslm.training.changes import check_changes


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
        require_no_run(run)
    if datasets is None and config.train.epochs is not None:
        return []
    longer = [] if datasets is None else _check_same_data(run, datasets)
    has_learned = any(run.glob(COMPLETE_CHECKPOINTS))
    before = load(RunConfig, run / CONFIG).value
    return [*longer, *check_changes(before, config, allow_changed, has_learned=has_learned, data_changes=longer)]


def identity(manifest: Manifest) -> dict[str, str | None]:
    """What must stay the same of a dataset while a run reads it."""
    return {
        "tokens_sha256": manifest.tokens_fingerprint(),
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "reference_weights_sha256": None if manifest.reference is None else manifest.reference.weights_sha256,
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
