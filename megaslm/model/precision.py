"""The arithmetic of forward and backward passes."""

from typing import Literal

import torch

from megaslm.config.schema import Precision

ChosenPrecision = Literal["bf16", "fp32"]


def choose_precision(precision: Precision, device: torch.device) -> ChosenPrecision:
    """What `auto` means on a device: bf16 on GPUs; fp32 on CPUs, most of which are many times slower in bf16."""
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return precision


def dtype_of(precision: ChosenPrecision) -> torch.dtype:
    """The tensor type."""
    return torch.bfloat16 if precision == "bf16" else torch.float32
