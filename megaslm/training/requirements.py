"""The requirements of a run on its ranks and their hosts."""

from collections.abc import Iterator
from pathlib import Path

from megaslm.config.load import settings_of
from megaslm.config.plan import checkpoint_bytes, parameter_count
from megaslm.config.run_files import CONFIG
from megaslm.config.schema import ModelSection, RunConfig
from megaslm.config.section import home_expanded
from megaslm.config.source import dotted_key
from megaslm.dataset.manifest import MANIFEST
from megaslm.errors import MegaSLMError
from megaslm.health.findings import Requirements
from megaslm.model.weight_files import count_parameters
from megaslm.storage.file_systems import is_remote
from megaslm.training.checkpoints.file_list import read_file_list
from megaslm.training.checkpoints.store import complete_checkpoints
from megaslm.training.run_folder import RunFolder


def requirements_of(config: RunConfig, *, smoke_steps: int | None = None) -> Requirements:
    """What the ranks of a run, or of its smoke test, must have in common, and what their hosts need room for."""
    datasets = dict(_datasets(config))
    fetches = any(is_remote(place) for place in datasets.values())
    return Requirements(
        settings={
            **{dotted_key(path): str(value) for path, value in settings_of(config)},
            "--smoke-steps": str(smoke_steps),
        },
        files={
            **{
                f"{MANIFEST} of {key}": Path(place) / MANIFEST
                for key, place in datasets.items()
                if not is_remote(place)
            },
            **dict(_files_of_weights(config.model)),
        },
        checkpoints=RunFolder(Path(config.run_dir)).checkpoints,
        checkpoint_bytes=_checkpoint_bytes(config.model),
        cache=home_expanded(config.data.fetch.cache) if fetches else None,
    )


def _datasets(config: RunConfig) -> Iterator[tuple[str, str]]:
    if config.data.train is not None:
        yield "data.train", config.data.train
    for name, stream in config.data.streams.items():
        yield f"data.streams.{name}", stream.dataset
    for name, held_out in config.validation.sets.items():
        yield f"validation.sets.{name}", held_out.dataset


def _files_of_weights(model: ModelSection) -> Iterator[tuple[str, Path]]:
    """The file that shows whether a host sees the model that the run starts from."""
    if model.from_pretrained is not None:
        yield "config.json of model.from_pretrained", Path(model.from_pretrained) / "config.json"
    if model.from_run is not None:
        yield f"{CONFIG} of model.from_run", Path(model.from_run) / CONFIG


def _checkpoint_bytes(model: ModelSection) -> int:
    """The size of a checkpoint. 0 where the weights cannot be read: opening it raises the error later."""
    try:
        if model.from_run is not None:
            newest = complete_checkpoints(RunFolder(Path(model.from_run)).checkpoints)[-1:]
            return sum(file.size for checkpoint in newest for file in read_file_list(checkpoint.folder).values())
        return checkpoint_bytes(_parameters(model))
    except (MegaSLMError, OSError):
        return 0


def _parameters(model: ModelSection) -> int:
    if model.from_pretrained is not None:
        return count_parameters(Path(model.from_pretrained))
    assert model.from_scratch is not None, "the schema lets exactly one source of weights through"
    return parameter_count(model.from_scratch).total
