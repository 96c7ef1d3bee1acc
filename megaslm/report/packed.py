"""Arrays and numbers in the document: base64 of little-endian bytes, null for what is not known; points of curves."""

import base64
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Packed = dict[str, object]
_DTYPES = {"f2": "<f2", "f4": "<f4", "f8": "<f8", "i4": "<i4"}


def packed(values: NDArray[np.generic], dtype: Literal["f2", "f4", "f8", "i4"] = "f4") -> Packed:
    """An array of any shape, in C order. NaN stands for what was not measured."""
    # Losses beyond float16's range become infinite, as they should.
    with np.errstate(over="ignore"):
        return _encoded(dtype, values.shape, values.astype(_DTYPES[dtype]).tobytes())


def packed_bits(values: NDArray[np.bool_]) -> Packed:
    """An array of truth values, flattened in C order, eight to a byte, the first one in the lowest bit."""
    return _encoded("bits", values.shape, np.packbits(values.ravel(), bitorder="little").tobytes())


def spread(count: int, most: int) -> NDArray[np.int64]:
    """At most so many of `count` places, evenly spread, with the first and the last one; of one place the last."""
    if most == 1:
        return np.array([count - 1])
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def known(value: float | None) -> float | None:
    """A number; None where it is NaN or infinite, which JSON lacks."""
    return None if value is None or not math.isfinite(value) else float(value)


def _encoded(dtype: str, shape: tuple[int, ...], data: bytes) -> Packed:
    return {"dtype": dtype, "shape": list(shape), "data": base64.b64encode(data).decode("ascii")}
