"""Rotary embeddings in config.json: transformers 4 and 5 spell them otherwise, and each reads past the other's keys."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, LlamaConfig, PretrainedConfig

_READS_ROPE_PARAMETERS = hasattr(LlamaConfig(), "rope_parameters")
_BESIDE = ("rope_theta", "partial_rotary_factor")


def config_of(folder: Path, family: type[PretrainedConfig], stated: Mapping[str, Any]) -> PretrainedConfig:
    """The configuration of a folder whose config.json holds `stated`, of either release; raises what transformers does.

    Release 5 reads both spellings. Release 4 would take the usual rotary embeddings for those of release 5.
    """
    if _READS_ROPE_PARAMETERS:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return family.from_dict(in_both_spellings(stated))


def in_both_spellings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with the same rotary embeddings for both releases; one without any is left as it is.

    Release 4 has `rope_theta` and, where positions are scaled, `rope_scaling`; release 5 has both in `rope_parameters`.
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
    """The tokens beyond which a row's angles depend on the other rows of its batch; null where they never do.

    Under `longrope`, transformers turns all rows of a batch by other angles as soon as one has a longer document.
    """
    stated = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if stated.get("rope_type", stated.get("type")) != "longrope":
        return None
    original = getattr(config, "original_max_position_embeddings", None)
    return int(original or stated.get("original_max_position_embeddings") or config.max_position_embeddings)
