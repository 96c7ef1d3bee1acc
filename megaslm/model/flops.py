"""A device's name, and its peak rate of floating-point operations."""

import platform
from pathlib import Path

import torch

from megaslm.config.devices import gpu_named
from megaslm.model.load import ChosenPrecision

_PROCESSORS = Path("/proc/cpuinfo")


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
