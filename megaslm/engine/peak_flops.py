"""What devices can do at most, by their makers' data sheets."""

import re

from megaslm.model.precision import ChosenPrecision

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


def peak_flops(device_name: str, precision: ChosenPrecision) -> float | None:
    """FLOP/s of a device by the name that `device_name` gives it; null where it is not known, and but for bf16."""
    if precision != "bf16":
        return None
    for words, tera in _BF16_TFLOPS:
        if re.search(rf"\b{words}\b", device_name):
            return None if tera is None else tera * 1e12
    return None
