"""Models from a shape or from a Hugging Face folder, whole or divided over ranks while they are built."""

import hashlib
import json
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, MistralConfig, PretrainedConfig

from megaslm.config.schema import Architecture
from megaslm.errors import ModelError
from megaslm.model.selective_lm import CausalLM
from megaslm.model.weight_files import check_weight_files

# Loading and saving draw bars and tables, one a rank, into the lines of the run; what is wrong is raised here.
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

SUPPORTED_FAMILIES = ("llama", "mistral", "qwen2", "granite")
# Masks of document borders are given explicitly, which this implementation takes on every device.
_ATTENTION = "sdpa"


class Sharding(Protocol):
    """How parameters are divided over ranks while a model is built; the engine knows, this module only asks."""

    def whole(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[object]:
        """Within the context the parameters are whole, and what the first rank writes reaches all ranks."""
        ...


def build_from_shape(architecture: Architecture, *, eos_id: int, dtype: torch.dtype) -> CausalLM:
    """A model of the given shape with undefined weights; `draw_weights` gives them values.

    Under `torch.device("meta")` nothing is allocated, under an engine that divides parameters only this rank's part.
    """
    return AutoModelForCausalLM.from_config(
        _hugging_face_config(architecture, eos_id),
        dtype=dtype,
        attn_implementation=_ATTENTION,
        trust_remote_code=False,
    )


def draw_weights(lm: CausalLM, *, seed: int, standard_deviation: float, sharding: Sharding) -> None:
    """Draws every matrix from a normal distribution, sets every gain to one and every bias to zero.

    Each parameter has a generator of its own, seeded by `seed` and its name, so that the weights do not depend on the
    number of ranks, the device or the order of modules. Done here because `from_config` leaves torch's own
    initialisation behind when parameters are divided while the modules are built.
    """
    for name, parameter in lm.named_parameters():
        with sharding.whole([parameter]), torch.no_grad():
            if parameter.ndim >= 2:
                generator = torch.Generator().manual_seed(_seed_for(name, seed))
                drawn = torch.empty(parameter.shape, dtype=torch.float32)
                parameter.copy_(drawn.normal_(0.0, standard_deviation, generator=generator))
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def load_pretrained(folder: Path, *, dtype: torch.dtype) -> CausalLM:
    """The model of a Hugging Face folder, with every weight read from its safetensors.

    Raises:
        ModelError: the folder is no model, has another architecture, or lacks a weight that the model needs.
    """
    check_model_folder(folder)
    try:
        lm, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=_ATTENTION,
            output_loading_info=True,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{folder}: the model cannot be loaded: {error}") from error
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
        if report.get(problem):
            found = ", ".join(str(key) for key in sorted(report[problem], key=str)[:5])
            raise ModelError(
                f"{folder}: {len(report[problem])} {problem.replace('_', ' ')} when loading, such as {found}"
            )
    return lm


def check_model_folder(folder: Path) -> PretrainedConfig:
    """Reads the folder's configuration without its weights.

    Raises:
        ModelError: no such folder, no config.json, safetensors that are missing or incomplete, or an architecture that
            MegaSLM does not know.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; a Hugging Face model folder was expected")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: holds no config.json; a Hugging Face model folder was expected")
    config = _read_config(folder)
    if config.model_type not in SUPPORTED_FAMILIES:
        raise ModelError(
            f"{folder}: model type {config.model_type!r}; MegaSLM computes the loss of {', '.join(SUPPORTED_FAMILIES)}"
        )
    if len(set(getattr(config, "layer_types", None) or ())) > 1:
        raise ModelError(
            f"{folder}: some of its layers attend within a window and some do not; MegaSLM gives all one mask"
        )
    check_weight_files(folder)
    return config


def parameter_count(lm: nn.Module) -> int:
    """Parameters of the whole model, counted once where they are shared, also where they are divided over ranks."""
    return sum(whole_size(parameter).numel() for parameter in lm.parameters())


def whole_size(parameter: Tensor) -> torch.Size:
    """A parameter's shape when whole, also where this rank holds a part of it."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _read_config(folder: Path) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{folder}: its config.json needs code of its own, which MegaSLM never runs; convert it to one of "
                f"{', '.join(SUPPORTED_FAMILIES)}"
            ) from error
        raise ModelError(f"{folder}: its config.json cannot be read: {error}") from error


def _hugging_face_config(architecture: Architecture, eos_id: int) -> PretrainedConfig:
    family = {"llama": LlamaConfig, "mistral": MistralConfig}[architecture.family]
    options = {"sliding_window": None} if architecture.family == "mistral" else {}
    return family(
        vocab_size=architecture.vocab_size,
        hidden_size=architecture.hidden_size,
        intermediate_size=architecture.intermediate_size,
        num_hidden_layers=architecture.num_layers,
        num_attention_heads=architecture.num_heads,
        num_key_value_heads=architecture.num_kv_heads or architecture.num_heads,
        max_position_embeddings=architecture.max_position_embeddings,
        rope_theta=architecture.rope_theta,
        rms_norm_eps=architecture.rms_norm_eps,
        initializer_range=architecture.initializer_range,
        tie_word_embeddings=architecture.tie_embeddings,
        bos_token_id=None,
        eos_token_id=eos_id,
        pad_token_id=None,
        **options,
    )


def _seed_for(name: str, seed: int) -> int:
    digest = hashlib.sha256(json.dumps([seed, name]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
