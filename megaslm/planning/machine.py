"""The machine that a plan is for: GPUs by name, or what this machine has."""

from dataclasses import dataclass

import torch

from megaslm.config.devices import GPU_KINDS, gpu_named
from megaslm.errors import ConfigError
from megaslm.health.host_facts import available_memory_bytes

GIB = 1 << 30
GPUS_OF_A_HOST = 8
_RANKS_ON_CPU = 2
"""As many as launcher/local.sh starts."""
USABLE_MEMORY = 0.9
"""The share of a GPU's memory that a plan fills. The rest is for CUDA's context, NCCL, the workspaces of kernels and
fragmentation, which are not foreseen."""


@dataclass(frozen=True)
class Machine:
    """What a run is planned for."""

    ranks: int
    """One on each GPU or, without GPUs, the processes."""
    device: str
    """The GPU's name, or `cpu`."""
    memory_bytes: int
    """Of a GPU; on a CPU a rank's share of what is free."""
    peak_tflops: float | None
    """In bf16; None where it is not known."""

    @property
    def on_gpu(self) -> bool:
        """Whether it has GPUs."""
        return self.device != "cpu"

    @property
    def is_this_one(self) -> bool:
        """Whether it is the machine that the plan is made on, for no `--gpu` names another."""
        return self.device not in GPU_KINDS

    @property
    def usable_bytes(self) -> int:
        """What a rank may take."""
        return int(USABLE_MEMORY * self.memory_bytes)


def machine_of(gpu: str | None, gpus: int | None) -> Machine:
    """The machine with `gpus` of the GPUs named `gpu`; without a name of the kind that this machine has, or its CPU.

    Raises:
        ConfigError: no GPU has this name.
    """
    if gpu is not None:
        return _named(gpu, gpus or GPUS_OF_A_HOST)
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        known = gpu_named(device.name)
        peak = None if known is None else known.bf16_tflops
        return Machine(gpus or torch.cuda.device_count(), device.name, device.total_memory, peak)
    ranks = gpus or _RANKS_ON_CPU
    return Machine(ranks, "cpu", available_memory_bytes() // ranks, None)


def _named(name: str, gpus: int) -> Machine:
    if name not in GPU_KINDS:
        raise ConfigError(f"--gpu {name}: is not known; expected one of {', '.join(GPU_KINDS)}")
    gpu = GPU_KINDS[name]
    return Machine(gpus, name, gpu.memory_gib[name] * GIB, gpu.bf16_tflops)
