"""Floating-point operations: how many a model needs, by its configuration, and a device's peak rate."""

import platform
import re
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PretrainedConfig

from megaslm.model.load import ChosenPrecision

_PROCESSORS = Path("/proc/cpuinfo")
# The first entry contained in the name counts, so slower variants stand before their family.
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
"""Words of a name, and the peak of bf16 matrix products with fp32 sums; None for a slice of a GPU.

Products are dense: makers often state twice as much, for matrices half of which is zero. The peak is that of a card at
its full power. A card with a lower power limit cannot reach it, and its name does not tell.
"""


def forward_flops_per_token(config: PretrainedConfig, length: int) -> float:
    """Operations of one forward pass per token, averaged over a row of `length` tokens.

    Only matrix products count: two operations for every weight of `matrix_parameters`, and in attention two for every
    product of a query and key component or of a probability and value component. A token attends to half of the row,
    the mean under a causal mask. Document borders, which reduce this, are ignored, and so are norms, activations,
    softmax, rotary embeddings and the embedding look-up, which cost little. Training takes three times as much: one
    part for the forward pass, two for the backward.
    """
    return forward_flops(config).attending(length / 2)


class ForwardFlops(NamedTuple):
    """Operations of one forward pass per token: those of the weights, and those for each token that it attends to."""

    weights: float
    attended_token: float

    def attending(self, tokens: float) -> float:
        """The operations for a token that attends to so many, the mean over the tokens of a text."""
        return self.weights + self.attended_token * tokens


def forward_flops(config: PretrainedConfig) -> ForwardFlops:
    """The operations of a model, counted as in `forward_flops_per_token`."""
    return ForwardFlops(
        weights=2.0 * matrix_parameters(config),
        attended_token=float(config.num_hidden_layers * 2 * 2 * _queries_width(config)),
    )


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
    for words, tera in _BF16_TFLOPS:
        if re.search(rf"\b{words}\b", device_name):
            return None if tera is None else tera * 1e12
    return None
