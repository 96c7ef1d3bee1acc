"""What a model folder's config.json says, before transformers reads it. Imports neither transformers nor torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from megaslm.config.hub import HubModel, hub_hint
from megaslm.dataset.kinds import Kind, kind_of
from megaslm.errors import ModelError
from megaslm.files import looked_in
from megaslm.model.families import FAMILIES

CONFIG = "config.json"


class StatedShape(NamedTuple):
    """What a config.json says of the rows that its model reads, under the names of transformers' configurations."""

    vocab_size: int
    max_position_embeddings: int
    rope_parameters: Mapping[str, Any] | None = None
    original_max_position_embeddings: int | None = None


def stated_shape(folder: Path) -> StatedShape | None:
    """The shape in a folder's config.json; None where it leaves one of the numbers to transformers' defaults.

    Raises ModelError as `stated_config` does.
    """
    stated = stated_config(folder)
    sizes = [stated.get(key) for key in ("vocab_size", "max_position_embeddings")]
    if not all(isinstance(size, int) for size in sizes):
        return None
    scaling = stated.get("rope_parameters") or stated.get("rope_scaling")
    original = stated.get("original_max_position_embeddings")
    return StatedShape(
        stated["vocab_size"],
        stated["max_position_embeddings"],
        scaling if isinstance(scaling, dict) else None,
        original if isinstance(original, int) else None,
    )


def require_model(folder: Path, hub: HubModel | None = None) -> None:
    """Raises ModelError where there is no such folder, or it holds an adapter.

    `hub`: where the folder comes from, so that the message can tell how to fetch it.
    """
    if not folder.is_dir():
        found = f"{folder}: no such folder{looked_in(folder)}"
        if hub is not None:
            raise ModelError(f"{found}; fetch the model with\n    {hub.command(str(folder))}")
        raise ModelError(f"{found}; a Hugging Face model folder was expected{hub_hint(folder, 'model')}")
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder}: holds an adapter (adapter_config.json), which MegaSLM does not apply; merge it into the model "
            "and save that, or remove the adapter's files"
        )


def stated_config(folder: Path) -> dict[str, Any]:
    """The content of config.json.

    Raises ModelError where there is none, or one that is not JSON, of a quantised model, or of an unsupported
    architecture.
    """
    path = folder / CONFIG
    if not path.is_file():
        is_run = kind_of(folder) in (Kind.RUN, Kind.CHECKPOINT)
        hint = f"; it is of a training run, and `megaslm export {folder} OUTPUT` writes its model" if is_run else ""
        raise ModelError(
            f"{folder}: holds no {CONFIG}{looked_in(folder)}; a Hugging Face model folder was expected{hint}"
        )
    stated = _parsed(path)
    require_known(stated.get("model_type"), stated, path)
    _require_plain(stated, path)
    return stated


def _parsed(path: Path) -> dict[str, Any]:
    try:
        stated = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON in UTF-8: {error}; correct the file") from error
    if not isinstance(stated, dict):
        raise ModelError(f"{path}: holds a {type(stated).__name__}; expected an object that names a model_type")
    return stated


def require_known(model_type: object, stated: Mapping[str, Any], path: Path) -> None:
    """Raises ModelError where `model_type`, of the config.json at `path` that holds `stated`, is not supported."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        own_code = ", which needs code of its own that MegaSLM never runs" if "auto_map" in stated else ""
        raise ModelError(
            f"{path}: transformers takes it for model type {model_type!r}{own_code}; MegaSLM computes the loss of "
            f"{', '.join(FAMILIES)}: convert the model to one of them, or use another"
        )


def _require_plain(stated: Mapping[str, Any], path: Path) -> None:
    """Raises ModelError unless the weights are the model's own, unquantised and under their usual file name."""
    for key in ("quantization_config", "compression_config"):
        if stated.get(key) is not None:
            method = stated[key].get("quant_method", "unknown") if isinstance(stated[key], dict) else "unknown"
            raise ModelError(
                f"{path}: {key} says that the model is quantised (method {method}); MegaSLM computes with plain "
                "weights: use the model that it was made from"
            )
    if stated.get("transformers_weights") is not None:
        raise ModelError(
            f"{path}: transformers_weights = {stated['transformers_weights']!r}: MegaSLM reads model.safetensors or "
            "its index; rename the weights to that and remove the key"
        )
