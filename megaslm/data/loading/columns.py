"""The columns of several rows, stacked."""

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megaslm.data.dataset.target_bits import unpacked
from megaslm.data.loading.shards import Row

Number = TypeVar("Number", bound=np.generic)


def values_of(rows: list[Row], name: str, dtype: type[Number]) -> NDArray[Number]:
    """(B, width) of a column, each value converted on its way into place."""
    stacked = np.empty((len(rows), *rows[0].columns.dtype[name].shape), dtype=dtype)
    for place, row in enumerate(rows):
        stacked[place] = row.columns[name]
    return stacked


def nats_of(rows: list[Row], name: str) -> Tensor | None:
    """(B, L) float32 of a column that the dataset may lack."""
    return torch.from_numpy(values_of(rows, name, np.float32)) if _has(rows, name) else None


def selected_of(rows: list[Row]) -> Tensor | None:
    """(B, L) bool of the column `selected`, which the dataset may lack."""
    if not _has(rows, "selected"):
        return None
    targets = rows[0].columns.dtype["tokens"].shape[0] - 1
    return torch.from_numpy(unpacked(values_of(rows, "selected", np.uint8), targets))


def _has(rows: list[Row], name: str) -> bool:
    return name in (rows[0].columns.dtype.names or ())
