"""Floating-point operations: what a model needs by its configuration, what a device can do by its data sheet."""

import platform
import re
from pathlib import Path

import torch
from transformers import PretrainedConfig

from megaslm.model.load import ChosenPrecision

_PROCESSORS = Path("/proc/cpuinfo")
# The first that a name has in it counts: cards that are slower than their family stand before it.
_BF16_TFLOPS = (
    ("MIG", None),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H200 NVL", 835.0),
    ("H100", 989.0),
    ("H200", 989.0),
    ("GH200", 989.0),
    ("H800", 989.0),
    ("B200", 2250.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("L40S", 362.0),
    ("L4", 121.0),
    ("A10", 125.0),
)
"""Words of a name, and what matrix products of dense bf16 reach, summed in fp32; null for a slice of a card."""


def forward_flops_per_token(config: PretrainedConfig, length: int) -> float:
    """Operations of one forward pass for one token of a row of `length`, on average over the row.

    Counted are the matrix products: two operations for every weight of `matrix_parameters`, and in attention two for
    every number of queries by keys and of probabilities by values. A token attends to half of the row, the mean under
    a causal mask; document borders, which leave it less, are not looked at, nor is what else takes little: norms,
    activations, softmax, rotary embeddings, the embedding table's look-up. Training takes three times as much, one
    for the forward pass and two for the backward.
    """
    attention = config.num_hidden_layers * 2 * 2 * _queries_width(config) * length / 2
    return 2.0 * matrix_parameters(config) + attention


def matrix_parameters(config: PretrainedConfig) -> int:
    """Weights of the matrices that every token is multiplied by: projections, gated feed-forward layers and the head.

    The embedding table is none of them; the head counts once, also where it shares the table. Biases and gains are
    left out. Holds for the families that MegaSLM knows: llama, mistral, qwen2, granite.
    """
    width = config.hidden_size
    keys_values_width = 2 * config.num_key_value_heads * _head_size(config)
    attention = width * (2 * _queries_width(config) + keys_values_width)
    feed_forward = 3 * width * config.intermediate_size
    return config.num_hidden_layers * (attention + feed_forward) + config.vocab_size * width


def _queries_width(config: PretrainedConfig) -> int:
    return int(config.num_attention_heads * _head_size(config))


def _head_size(config: PretrainedConfig) -> int:
    # Qwen2's and Granite's configurations may have no such key, and others have it as null.
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def device_name(device: torch.device) -> str:
    """A GPU's name as CUDA gives it, such as `NVIDIA H200`; of a CPU that of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name()


def _processor_name() -> str:
    for line in _PROCESSORS.read_text(encoding="utf-8").splitlines() if _PROCESSORS.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def peak_flops(device_name: str, precision: ChosenPrecision) -> float | None:
    """FLOP/s of a device by the name that `device_name` gives it; null where it is not known, and but for bf16."""
    if precision != "bf16":
        return None
    for words, tera in _BF16_TFLOPS:
        if re.search(rf"\b{words}\b", device_name):
            return None if tera is None else tera * 1e12
    return None
