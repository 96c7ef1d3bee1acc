"""GPUs by name: their memory, and their peak rate of bf16 matrix products. One table, for plans and for MFU."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU."""

    words: str
    """Words of the name that CUDA gives it."""
    bf16_tflops: float | None
    """Peak of dense bf16 products with fp32 sums; None for a slice of a GPU, whose peak depends on the slice."""
    memory_gib: dict[str, int]
    """What CUDA reports as its memory, rounded down to whole GiB, by the names that `--gpu` takes."""


GPUS = (
    Gpu("MIG", None, {}),
    Gpu("H100 PCIe", 756.0, {"h100-pcie": 79}),
    Gpu("H100 NVL", 835.0, {"h100-nvl": 93}),
    Gpu("H200 NVL", 835.0, {"h200-nvl": 139}),
    Gpu("H100", 989.0, {"h100-80g": 79}),
    Gpu("H200", 989.0, {"h200": 139}),
    Gpu("GH200", 989.0, {"gh200": 94}),
    Gpu("B200", 2250.0, {"b200": 178}),
    Gpu("A100", 312.0, {"a100-40g": 39, "a100-80g": 79}),
    Gpu("A800", 312.0, {"a800": 79}),
    Gpu("L40S", 362.0, {"l40s": 44}),
    Gpu("L4", 121.0, {"l4": 22}),
    Gpu("A10", 125.0, {"a10": 21}),
    Gpu("A40", 149.7, {"a40": 44}),
    Gpu("A30", 165.0, {"a30": 23}),
)
"""The first entry whose words are contained in a name counts, so slower variants stand before their family.

Peaks are those of NVIDIA's data sheets: "H100 Tensor Core GPU" (SXM and NVL; its edition of 2022 has the PCIe card),
"H200 Tensor Core GPU" (SXM and NVL), "GH200 Grace Hopper Superchip", "HGX B200", "A100 Tensor Core GPU", "A800 40GB
Active", "L40S", "L4", "A10", "A40" and "A30". They often state twice as much, for matrices half of which is zero. The
peak is that of a card at its full power. A card with a lower power limit cannot reach it, and its name does not tell.
The H800 is not in the table: its PCIe card has a lower peak, and its name need not tell it from the SXM module.

CUDA reports less memory than a card has on its label. The numbers are those of PyTorch's messages of exhausted memory,
for instance 79.1 GiB of an H100 with 80 GB, 93.1 of one with 94, 139.8 of an H200, 94.9 of a GH200 with 96 and 178.4 of
a B200.
"""

GPU_KINDS = {kind: gpu for gpu in GPUS for kind in gpu.memory_gib}
"""The GPUs by the names that `--gpu` takes."""


def gpu_named(device_name: str) -> Gpu | None:
    """The kind of a GPU by the name that CUDA gives it; None where the table lacks it."""
    return next((gpu for gpu in GPUS if re.search(rf"\b{gpu.words}\b", device_name)), None)
