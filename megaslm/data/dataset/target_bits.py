"""The column `selected`: a bit a target, the first of a byte in its lowest bit, zeros beyond the last target."""

import numpy as np
from numpy.typing import NDArray


def mask_bytes(seq_len: int) -> int:
    """How many bytes hold the bits of a row."""
    return -(-seq_len // 8)


def pack_mask(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The bits of (n, seq_len) targets: (n, `mask_bytes` seq_len) uint8."""
    return np.packbits(mask, axis=1, bitorder="little")


def unpack_mask(bits: NDArray[np.uint8], seq_len: int) -> NDArray[np.bool_]:
    """What `pack_mask` was given: (n, seq_len) bool of (n, `mask_bytes` seq_len) uint8."""
    return np.unpackbits(bits, axis=1, count=seq_len, bitorder="little").view(np.bool_)
