"""The configuration of a Hugging Face model folder, read before its weights are."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoConfig, LlamaConfig, PretrainedConfig

from megaslm.config.hub import HubModel
from megaslm.errors import ModelError
from megaslm.model.families import FAMILIES
from megaslm.model.stated_config import CONFIG, require_known, require_model, stated_config
from megaslm.model.weight_files import NEEDLESS, StoredWeight, hold_the_same, plain_weights

# Loading and saving draw progress bars and tables on every rank, between our own lines. Errors are raised here.
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

_READS_ROPE_PARAMETERS = hasattr(LlamaConfig(), "rope_parameters")
_BESIDE = ("rope_theta", "partial_rotary_factor")
_LOGIT_CAP = "final_logit_softcapping"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# The prefix is missing in folders that were saved from the model without its head.
_BASE = "model."


def check_model_folder(folder: Path, hub: HubModel | None = None) -> PretrainedConfig:
    """Reads the folder's configuration and the headers of its weights. `hub` says where it comes from, for messages.

    Returns:
        The configuration. Its `tie_word_embeddings` says whether the stored weights share one matrix.

    Raises:
        ModelError: no such folder, no config.json, one that transformers rejects, safetensors that are missing or
            incomplete, a quantised model, one that caps its logits, an adapter, or an unsupported architecture.
    """
    require_model(folder, hub)
    config = read_config(folder)
    weights = plain_weights(folder)
    config.tie_word_embeddings = config.tie_word_embeddings and not _has_a_head_of_its_own(weights)
    return config


def read_config(folder: Path) -> PretrainedConfig:
    """The configuration in a folder's config.json.

    Raises:
        ModelError: there is none, or one that is not JSON, that transformers rejects, of a quantised model, of one that
            caps its logits, or of an unsupported architecture.
    """
    path, stated = folder / CONFIG, stated_config(folder)
    try:
        config = _config_of(folder, stated)
    except Exception as error:  # transformers and its dependencies raise any exception for unexpected values.
        raise ModelError(
            f"{path}: transformers cannot read the configuration: {type(error).__name__}: {error}; correct the file"
        ) from error
    # Other keys may make transformers choose another family.
    require_known(config.model_type, stated, path)
    _require_uncapped(config, path)
    return config


def _require_uncapped(config: PretrainedConfig, path: Path) -> None:
    """Raises ModelError where the model caps its logits. The check of losses would not see a large cap."""
    cap = getattr(config, _LOGIT_CAP, None)
    # A family that does not read the key keeps it all the same, and its logits are not capped.
    if cap is not None and hasattr(config_class(config.model_type)(), _LOGIT_CAP):
        raise ModelError(
            f"{path}: {_LOGIT_CAP} = {cap}: the model caps its logits, which MegaSLM's head does not; expected null: "
            "use a model without the cap"
        )


def require_all_used(folder: Path, weights: Mapping[str, StoredWeight], used: Iterable[str]) -> None:
    """Raise ModelError where a folder holds weights outside of `used`, the names of those that a model uses."""
    known = set(used)
    # Of a weight stored under both names, the copy without prefix is unused.
    unused = [
        name
        for name in weights
        if name not in known
        and (f"{_BASE}{name}" not in known or f"{_BASE}{name}" in weights)
        and not NEEDLESS.search(name)
    ]
    if unused:
        raise ModelError(
            f"{folder}: {len(unused)} of its {len(weights)} weights, such as {', '.join(sorted(unused)[:3])}, are not "
            f"used by the model that its {CONFIG} describes, which would differ from the saved model; correct "
            f"{CONFIG} or, to drop these weights, load the model with transformers and save it again"
        )


def _has_a_head_of_its_own(weights: Mapping[str, StoredWeight]) -> bool:
    embedding = EMBEDDING if EMBEDDING in weights else EMBEDDING.removeprefix(_BASE)
    return {embedding, HEAD} <= set(weights) and not hold_the_same(weights, embedding, HEAD)


def config_class(family: str) -> type[PretrainedConfig]:
    """transformers' class for the configurations of a family."""
    return CONFIG_MAPPING[family]


def _config_of(folder: Path, stated: Mapping[str, Any]) -> PretrainedConfig:
    """The configuration of a folder whose config.json holds `stated`, of either release. Raises as transformers does.

    Release 5 reads both spellings. Release 4 would replace the rotary embeddings of release 5 by the default ones.
    """
    if _READS_ROPE_PARAMETERS:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return config_class(stated["model_type"]).from_dict(in_both_spellings(stated))


def in_both_spellings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with the same rotary embeddings for both releases; unchanged where it has none.

    Release 4 has `rope_theta` and, with scaled positions, `rope_scaling`; release 5 has both in `rope_parameters`, of
    Gemma 3 and OLMo 3 once per kind of layer.
    """
    stated = {**(config.get("rope_scaling") or config.get("rope_parameters") or {})}
    if "full_attention" in stated:
        whole = in_both_spellings({**config, "rope_parameters": stated["full_attention"], "rope_scaling": None})
        local_theta = FAMILIES[config["model_type"]].local_rope_theta
        if local_theta is not None:
            whole[local_theta] = stated["sliding_attention"]["rope_theta"]
        return {**whole, "rope_parameters": stated}
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
