"""The configuration of a Hugging Face model folder, read before its weights are."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, GraniteConfig, LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config

from megaslm.errors import ModelError
from megaslm.model.weight_files import StoredWeight, hold_the_same, stored_weights

# Loading and saving draw progress bars and tables on every rank, between our own lines. Errors are raised here.
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

_READS_ROPE_PARAMETERS = hasattr(LlamaConfig(), "rope_parameters")
_BESIDE = ("rope_theta", "partial_rotary_factor")
FAMILIES: dict[str, type[PretrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "granite": GraniteConfig,
}
"""The supported architectures, by model type."""
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# The prefix is missing in folders that were saved from the model without its head.
_BASE = "model."
_CONFIG = "config.json"
_FLOATING_POINT = ("F64", "F32", "F16", "BF16")
# Unused by the supported releases: the angles of rotary embeddings, which follow from config.json.
_NEEDLESS = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$")


def check_model_folder(folder: Path) -> PretrainedConfig:
    """Reads the folder's configuration and the headers of its weights.

    Returns:
        The configuration. Its `tie_word_embeddings` says whether the stored weights share one matrix.

    Raises:
        ModelError: no such folder, no config.json, one that transformers rejects, safetensors that are missing or
            incomplete, a quantised model, an adapter, or an unsupported architecture.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; a Hugging Face model folder was expected")
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder}: holds an adapter (adapter_config.json), which MegaSLM does not apply; merge it into the model "
            "and save that, or remove the adapter's files"
        )
    config = read_config(folder)
    weights = stored_weights(folder)
    for name, weight in weights.items():
        if weight.dtype not in _FLOATING_POINT and not _NEEDLESS.search(name):
            raise ModelError(
                f"{folder}: {name} is stored as {weight.dtype}; expected one of {', '.join(_FLOATING_POINT)}: the "
                "model is quantised, or this weight does not belong to it; use the model that it was made from, or "
                "load it with transformers and save it again"
            )
    config.tie_word_embeddings = config.tie_word_embeddings and not _has_a_head_of_its_own(weights)
    return config


def read_config(folder: Path) -> PretrainedConfig:
    """The configuration in a folder's config.json.

    Raises:
        ModelError: there is none, or one that is not JSON, that transformers rejects, of a quantised model, or of an
            unsupported architecture.
    """
    path = folder / _CONFIG
    if not path.is_file():
        raise ModelError(f"{folder}: holds no {_CONFIG}; a Hugging Face model folder was expected")
    stated = _parsed(path)
    _require_known(stated.get("model_type"), stated, path)
    _require_plain(stated, path)
    try:
        config = config_of(folder, FAMILIES[stated["model_type"]], stated)
    except Exception as error:  # transformers and its dependencies raise any exception for unexpected values.
        raise ModelError(
            f"{path}: transformers cannot read the configuration: {type(error).__name__}: {error}; correct the file"
        ) from error
    # Other keys may make transformers choose another family.
    _require_known(config.model_type, stated, path)
    return config


def require_all_used(folder: Path, weights: Mapping[str, StoredWeight], used: Iterable[str]) -> None:
    """Raise ModelError where a folder holds weights outside of `used`, the names of those that a model uses."""
    known = set(used)
    # Of a weight stored under both names, the copy without prefix is unused.
    unused = [
        name
        for name in weights
        if name not in known
        and (f"{_BASE}{name}" not in known or f"{_BASE}{name}" in weights)
        and not _NEEDLESS.search(name)
    ]
    if unused:
        raise ModelError(
            f"{folder}: {len(unused)} of its {len(weights)} weights, such as {', '.join(sorted(unused)[:3])}, are not "
            f"used by the model that its {_CONFIG} describes, which would differ from the saved model; correct "
            f"{_CONFIG} or, to drop these weights, load the model with transformers and save it again"
        )


def _has_a_head_of_its_own(weights: Mapping[str, StoredWeight]) -> bool:
    embedding = EMBEDDING if EMBEDDING in weights else EMBEDDING.removeprefix(_BASE)
    return {embedding, HEAD} <= set(weights) and not hold_the_same(weights, embedding, HEAD)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        stated = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON in UTF-8: {error}; correct the file") from error
    if not isinstance(stated, dict):
        raise ModelError(f"{path}: holds a {type(stated).__name__}; expected an object that names a model_type")
    return stated


def _require_known(model_type: object, stated: Mapping[str, Any], path: Path) -> None:
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


def config_of(folder: Path, family: type[PretrainedConfig], stated: Mapping[str, Any]) -> PretrainedConfig:
    """The configuration of a folder whose config.json holds `stated`, of either release. Raises as transformers does.

    Release 5 reads both spellings. Release 4 would replace the rotary embeddings of release 5 by the default ones.
    """
    if _READS_ROPE_PARAMETERS:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return family.from_dict(in_both_spellings(stated))


def in_both_spellings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with the same rotary embeddings for both releases; unchanged where it has none.

    Release 4 has `rope_theta` and, with scaled positions, `rope_scaling`; release 5 has both in `rope_parameters`.
    """
    stated = {**(config.get("rope_scaling") or config.get("rope_parameters") or {})}
    if not stated and "rope_theta" not in config:
        return dict(config)
    beside = {key: stated.pop(key, config.get(key)) for key in _BESIDE}
    beside = {key: value for key, value in beside.items() if value is not None}
    rope_type = stated.pop("rope_type", stated.pop("type", "default"))
    scaling = None if rope_type == "default" else {"rope_type": rope_type, **stated}
    return {
        **config,
        **beside,
        "rope_scaling": scaling,
        "rope_parameters": {**beside, "rope_type": rope_type, **stated},
    }


def longest_steady_row(config: PretrainedConfig) -> int | None:
    """The number of tokens beyond which a row's angles depend on other rows of its batch; None where they never do.

    Under `longrope`, transformers changes the angles of all rows of a batch as soon as one has a longer document.
    """
    stated = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if stated.get("rope_type", stated.get("type")) != "longrope":
        return None
    original = getattr(config, "original_max_position_embeddings", None)
    return int(original or stated.get("original_max_position_embeddings") or config.max_position_embeddings)
