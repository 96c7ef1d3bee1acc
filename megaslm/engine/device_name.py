"""What a device calls itself."""

import platform
from pathlib import Path

import torch

_PROCESSORS = Path("/proc/cpuinfo")


def device_name(device: torch.device) -> str:
    """A GPU's name as CUDA gives it, such as `NVIDIA H200`; of a CPU that of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name()


def _processor_name() -> str:
    for line in _PROCESSORS.read_text(encoding="utf-8").splitlines() if _PROCESSORS.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
