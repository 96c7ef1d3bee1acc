"""A device's name, and its peak rate of floating-point operations."""

import platform
import re
from pathlib import Path

import torch

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
