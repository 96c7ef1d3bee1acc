"""A run's folder: what is in it, and whether a run may go on in it."""

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from megaslm import __version__
from megaslm.config.dump import dump
from megaslm.config.load import load, settings_of
from megaslm.config.schema import RunConfig
from megaslm.data.durable import write_file
from megaslm.data.manifest import TOKENIZER, Manifest
from megaslm.errors import CheckpointError, ConfigError
from megaslm.model.export import describe_model
from megaslm.model.selective_lm import CausalLM

CONFIG = "config.yaml"
# What a run is. The rest (length, logging, layout over ranks) may change when it is resumed.
_IDENTITY = (
    "model",
    "data.seq_len",
    "data.domains",
    "data.shuffle_seed",
    "train.objective",
    "train.global_batch_tokens",
    "slm.keep_ratio",
    "slm.keep_ratio_warmup_tokens",
    "slm.score",
    "slm.scope",
    "slm.mode",
    "slm.max_ref_loss",
    "seed",
)
_MAY_DIFFER = ("model.gradient_checkpointing",)


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint."""
        return self.path / "checkpoints"

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
        """One line a step."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's events."""
        return self.path / "tensorboard"

    @property
    def cost(self) -> Path:
        """Tokens, seconds and GPU-hours."""
        return self.path / "cost.json"

    def config(self) -> RunConfig:
        """The resolved configuration.

        Raises:
            CheckpointError: this is no run folder.
        """
        if not (self.path / CONFIG).is_file():
            raise CheckpointError(f"{self.path}: holds no {CONFIG}; a run folder was expected")
        return load(RunConfig, self.path / CONFIG).value


def check_run(config: RunConfig, training_data: Manifest, *, resume: bool) -> list[str]:
    """Whether a run may begin, or go on, in its folder; nothing is written.

    Returns:
        The settings that differ from those the run had so far, one line each.

    Raises:
        ConfigError: there is a run and `resume` is false, or what makes it this run has changed.
    """
    run = RunFolder(Path(config.run_dir))
    if not (run.path / CONFIG).exists():
        return []
    if not resume:
        raise ConfigError(
            f"run_dir = {run.path}: holds a run already; go on with it by --resume, or choose another run_dir"
        )
    _check_same_data(run, training_data)
    return _differences(run.config(), config)


def open_run(config: RunConfig, training_data: Manifest, lm: CausalLM, dtype: torch.dtype) -> None:
    """Makes the run folder: the resolved configuration, provenance, and what an export needs beside weights."""
    run = RunFolder(Path(config.run_dir))
    run.path.mkdir(parents=True, exist_ok=True)
    describe_model(lm, dtype, Path(config.data.train) / TOKENIZER, run.model_description)
    write_file(run.path / "manifest.json", json.dumps(_provenance(config, training_data), indent=1) + "\n")
    write_file(run.path / CONFIG, dump(config))


def _differences(before: RunConfig, now: RunConfig) -> list[str]:
    old = {_dotted(path): value for path, value in settings_of(before)}
    new = {_dotted(path): value for path, value in settings_of(now)}
    changed = [key for key in dict.fromkeys((*old, *new)) if old.get(key) != new.get(key)]
    lines = {key: f"{key}: {old.get(key)} → {new.get(key)}" for key in changed}
    refused = [line for key, line in lines.items() if _is_identity(key)]
    if refused:
        raise ConfigError(
            f"run_dir = {now.run_dir}: the run in it differs in what makes it this run; choose another run_dir, or "
            f"take the change back\n" + "\n".join(refused)
        )
    return list(lines.values())


def _is_identity(key: str) -> bool:
    return key not in _MAY_DIFFER and any(f"{key}.".startswith(f"{identity}.") for identity in _IDENTITY)


def _dotted(path: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in path)


def _check_same_data(run: RunFolder, training_data: Manifest) -> None:
    before = json.loads((run.path / "manifest.json").read_text(encoding="utf-8"))["data"]
    now = _data_identity(training_data)
    if before != now:
        lines = "\n".join(f"{key}: {before.get(key)} → {now.get(key)}" for key in now if before.get(key) != now[key])
        raise ConfigError(f"{run.path}: the run read other training data so far\n{lines}")


def _provenance(config: RunConfig, training_data: Manifest) -> dict[str, object]:
    return {
        "megaslm": __version__,
        "versions": {name: version(name) for name in ("torch", "deepspeed", "transformers", "mosaicml-streaming")},
        "dataset": config.data.train,
        "data": _data_identity(training_data),
    }


def _data_identity(manifest: Manifest) -> dict[str, str | None]:
    return {
        "tokens_sha256": manifest.tokens_fingerprint(),
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "reference_weights_sha256": None if manifest.reference is None else manifest.reference.weights_sha256,
    }
