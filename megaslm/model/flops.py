"""Floating-point operations: how many a model needs, by its configuration, and a device's peak rate."""

import platform
from pathlib import Path

import torch
from transformers import PretrainedConfig

from megaslm.config.devices import gpu_named
from megaslm.model.load import ChosenPrecision

_PROCESSORS = Path("/proc/cpuinfo")


def forward_flops_per_token(config: PretrainedConfig, length: int) -> float:
    """Operations of one forward pass per token, averaged over a row of `length` tokens.

    Only matrix products count: two operations for every weight of `matrix_parameters`, and in attention two for every
    product of a query and key component or of a probability and value component. A token attends to half of the row,
    the mean under a causal mask. Document borders, which reduce this, are ignored, and so are norms, activations,
    softmax, rotary embeddings and the embedding look-up, which cost little. Training takes three times as much: one
    part for the forward pass, two for the backward.
    """
    attention = config.num_hidden_layers * 2 * 2 * _queries_width(config) * length / 2
    return 2.0 * matrix_parameters(config) + attention


def training_flops_per_token(config: PretrainedConfig, length: int) -> float:
    """Operations of training per token: three forward passes' worth, whatever is recomputed or selected."""
    return 3 * forward_flops_per_token(config, length)


def matrix_parameters(config: PretrainedConfig) -> int:
    """Weights of the matrices that multiply every token: projections, gated feed-forward layers and the head.

    The embedding table does not count. The head counts once, also where it shares the table. Biases and gains are left
    out. Holds for the families that MegaSLM supports: llama, mistral, qwen2, granite.
    """
    width = config.hidden_size
    keys_values_width = 2 * config.num_key_value_heads * head_size(config)
    attention = width * (2 * _queries_width(config) + keys_values_width)
    feed_forward = 3 * width * config.intermediate_size
    return config.num_hidden_layers * (attention + feed_forward) + config.vocab_size * width


def _queries_width(config: PretrainedConfig) -> int:
    return int(config.num_attention_heads * head_size(config))


def head_size(config: PretrainedConfig) -> int:
    """The width of one attention head."""
    # Qwen2's and Granite's configurations may lack this key, and others have it as null.
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def device_name(device: torch.device) -> str:
    """A GPU's name as CUDA gives it, such as `NVIDIA H200`; for a CPU the processor's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name()


def _processor_name() -> str:
    for line in _PROCESSORS.read_text(encoding="utf-8").splitlines() if _PROCESSORS.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def peak_flops(device_name: str, precision: ChosenPrecision) -> float | None:
    """Peak FLOP/s of a device for dense products at full power, by the result of `device_name`.

    None where unknown, and for all precisions but bf16.
    """
    if precision != "bf16":
        return None
    gpu = gpu_named(device_name)
    return None if gpu is None or gpu.bf16_tflops is None else gpu.bf16_tflops * 1e12
