"""Models from a shape or from a Hugging Face folder, whole or divided over ranks while they are built."""

import hashlib
import json
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig
from transformers.integrations import is_deepspeed_zero3_enabled

from megaslm.config.schema import Architecture, Precision
from megaslm.errors import ModelError
from megaslm.model.folder import check_model_folder, config_class, require_all_used
from megaslm.model.selective_lm import CausalLM
from megaslm.model.weight_files import stored_weights

ChosenPrecision = Literal["bf16", "fp32"]

# `SelectiveLM` replaces it; this value only has to exist on every device.
_ATTENTION = "sdpa"


def choose_precision(precision: Precision, device: torch.device) -> ChosenPrecision:
    """What `auto` means on a device: bf16 on GPUs; fp32 on CPUs, most of which are many times slower in bf16."""
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return precision


def dtype_of(precision: ChosenPrecision) -> torch.dtype:
    """The tensor type."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


class Sharding(Protocol):
    """How parameters are divided over ranks while a model is built. The engine implements it."""

    def whole(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[object]:
        """Within the context the parameters are whole, and the first rank's writes reach all ranks."""
        ...


def build_from_shape(architecture: Architecture, *, eos_id: int, dtype: torch.dtype) -> CausalLM:
    """A model of the given shape with undefined weights, which `draw_weights` sets.

    Under `torch.device("meta")` nothing is allocated. Under an engine that divides parameters only this rank's part is.
    """
    return AutoModelForCausalLM.from_config(
        hugging_face_config(architecture, eos_id),
        dtype=dtype,
        attn_implementation=_ATTENTION,
        trust_remote_code=False,
    )


def draw_weights(lm: CausalLM, *, seed: int, standard_deviation: float, sharding: Sharding) -> None:
    """Draws every matrix from a normal distribution, sets every gain to one and every bias to zero.

    Each parameter has its own generator, seeded by `seed` and its name, so that the weights do not depend on the number
    of ranks, the device or the order of modules. `from_config` skips torch's own initialisation when parameters are
    divided while the modules are built.
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
    """The model of a Hugging Face folder, with every weight read from its safetensors, and none of them left over.

    Raises:
        ModelError: the folder is not a model, has another architecture, lacks a weight that the model needs, or holds
            one that it does not use.
    """
    config = check_model_folder(folder)
    try:
        lm, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=_ATTENTION,
            output_loading_info=True,
            # Silences warnings about the generation configuration, which is unused.
            generation_config=GenerationConfig(),
            # The report then names mismatched weights, which raise below. For divided parameters torch names them.
            ignore_mismatched_sizes=not is_deepspeed_zero3_enabled(),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers and its dependencies raise any exception for unexpected values.
        raise ModelError(
            f"{folder}: the model cannot be loaded: {type(error).__name__}: {error}; correct the file that the error "
            "names, until AutoModelForCausalLM.from_pretrained opens the folder"
        ) from error
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
        if report.get(problem):
            found = ", ".join(str(key) for key in sorted(report[problem], key=str)[:5])
            raise ModelError(
                f"{folder}: {len(report[problem])} {problem.replace('_', ' ')} when loading, such as {found}; its "
                "config.json and its weights do not belong together: copy the folder again, or correct config.json"
            )
    # The library's own report omits unused weights where parameters are divided over ranks.
    names = (name for name, _ in lm.named_parameters(remove_duplicate=False))
    require_all_used(folder, stored_weights(folder), names)
    return lm


def parameter_count(lm: nn.Module) -> int:
    """Parameters of the whole model, shared ones once, also where they are divided over ranks."""
    return sum(whole_size(parameter).numel() for parameter in lm.parameters())


def whole_size(parameter: Tensor) -> torch.Size:
    """A parameter's whole shape, also where this rank holds a part of it."""
    return getattr(parameter, "ds_shape", parameter.shape)


def hugging_face_config(architecture: Architecture, eos_id: int) -> PretrainedConfig:
    """transformers' configuration of a model of the given shape."""
    options = {"sliding_window": None} if architecture.family == "mistral" else {}
    return config_class(architecture.family)(
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
