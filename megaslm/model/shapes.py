"""The shape of a model without its weights: a run's own, a config.json, or the published shape of a known model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from megaslm.config.load import load
from megaslm.config.run_files import CONFIG as RUN_CONFIG
from megaslm.config.schema import Architecture, ModelSection, RunConfig
from megaslm.errors import ModelError
from megaslm.files import looked_in
from megaslm.model.folder import read_config
from megaslm.model.load import hugging_face_config
from megaslm.model.stated_config import CONFIG

_NO_TOKEN = 0
"""In place of EOS, which no number of a plan depends on."""
_TINYLLAMA = Architecture(
    vocab_size=32_000,
    hidden_size=2048,
    intermediate_size=5632,
    num_layers=22,
    num_heads=32,
    num_kv_heads=4,
    max_position_embeddings=2048,
)
_LLAMA_2 = Architecture(vocab_size=32_000, hidden_size=4096, intermediate_size=11_008, num_layers=32, num_heads=32)
_MISTRAL = Architecture(
    family="mistral",
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    max_position_embeddings=32_768,
)
_PUBLISHED: Mapping[str, Architecture] = {
    "tinyllama-1.1b": _TINYLLAMA,
    "mistral-7b": _MISTRAL,
    "llama-2-7b": _LLAMA_2,
    "rho-math-1b": _TINYLLAMA,
    "rho-math-1b-clm": _TINYLLAMA,
    "rho-math-1b-reference": _TINYLLAMA,
    "rho-general-1b-reference": _TINYLLAMA,
    "rho-math-7b": _MISTRAL,
    "rho-math-7b-reference": _MISTRAL,
}
"""The shapes of the models of configs/, by the names of their folders, from the config.json of TinyLlama's,
mistralai's and meta-llama's repositories on the Hugging Face hub. The others are made from these."""


@dataclass(frozen=True)
class Shape:
    """A model's configuration, and where it is from."""

    config: PretrainedConfig
    source: str


def shape_of(model: ModelSection, named: Path | None) -> Shape:
    """The shape of the model that a run trains.

    Args:
        model: the run's settings of it.
        named: a model's folder, its config.json, or the YAML file of a run that trains such a model. It counts first.

    Raises:
        ModelError: the shape is nowhere to be found.
        ConfigError: a run's YAML file is not one.
    """
    if named is not None:
        return _named(named)
    if model.from_scratch is not None:
        return Shape(hugging_face_config(model.from_scratch, _NO_TOKEN), "model.from_scratch")
    if model.from_run is not None:
        return _of_run(Path(model.from_run))
    assert model.from_pretrained is not None, "the schema lets exactly one source of weights through"
    found = shape_in(Path(model.from_pretrained))
    if found is not None:
        return found
    where = looked_in(model.from_pretrained)
    fetch = "" if model.hub is None else f"; this fetches the model:\n    {model.hub.command(model.from_pretrained)}"
    raise ModelError(
        f"model.from_pretrained = {model.from_pretrained}: is not on this machine{where}, and no published shape is "
        f"known by that name; name its config.json with --model, for a plan needs no weights{fetch}"
    )


def shape_in(folder: Path) -> Shape | None:
    """The shape of the model in a folder or, where there is none, of the known model of that name; None for others."""
    if folder.is_dir():
        return Shape(read_config(folder), f"{folder}/{CONFIG}")
    published = _PUBLISHED.get(folder.name)
    if published is None:
        return None
    return Shape(
        hugging_face_config(published, _NO_TOKEN), f"{folder} is not on this machine: the published shape is taken"
    )


def _named(path: Path) -> Shape:
    if path.suffix in (".yaml", ".yml"):
        model = load(RunConfig, path).value.model
        if model.from_scratch is None:
            raise ModelError(f"--model {path}: has no model.from_scratch; name a config.json, or a run with a shape")
        return shape_of(model, None)
    folder = path.parent if path.name == CONFIG else path
    return Shape(read_config(folder), f"{folder}/{CONFIG}")


def _of_run(run: Path) -> Shape:
    if (run / "model" / CONFIG).is_file():
        return Shape(read_config(run / "model"), f"{run}/model/{CONFIG}")
    if (run / RUN_CONFIG).is_file():
        return shape_of(load(RunConfig, run / RUN_CONFIG).value.model, None)
    raise ModelError(
        f"model.from_run = {run}: holds no run yet{looked_in(run)}; name the YAML file of that run, or a config.json, "
        "with --model"
    )
