"""What would make the host wait for a GPU, counted on a CPU.

A copy to the host by `tensor.to` cannot be told from others here; tests/gpu/test_host_reads_gpu.py sees it.
"""

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense,
    aten.allclose,
    aten.bincount,
    aten.equal,
    aten.is_nonzero,
    aten.masked_select,
    aten.nonzero,
    aten._unique,
    aten._unique2,
    aten.unique_consecutive,
    aten.unique_dim,
    aten.unique_dim_consecutive,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
READING_METHODS = ["cpu", "numpy", "tolist"]
"""Of a tensor: those that reach no operator on the CPU. All others, such as `item`, reach one that waits."""

RUNS_ON_CPUS_ONLY = "megaslm.model.attention.cpu:"


class WaitingOperators(TorchDispatchMode):
    """Notes every operator that waits for a GPU, by the line of MegaSLM that it comes from."""

    def __init__(self, places: list[str]) -> None:
        super().__init__()
        self.places = places

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        if waits(func, args, kwargs or {}):
            self.places.append(line_of_megaslm())
        return func(*args, **(kwargs or {}))


def waits(operator: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    if operator.overloadpacket in INDEXING:
        return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if operator == aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    return operator.overloadpacket in WAITING


def line_of_megaslm() -> str:
    """The innermost line of MegaSLM that is being run."""
    for frame, line in traceback.walk_stack(sys._getframe()):
        module = frame.f_globals.get("__name__", "")
        if module.startswith("megaslm."):
            return f"{module}:{line}"
    return "outside of MegaSLM"


@contextmanager
def host_reads() -> Iterator[list[str]]:
    """The places of all reads within the context, whoever makes them."""
    places: list[str] = []

    def noting(method: Callable[..., object]) -> Callable[..., object]:
        def noted(*args: object, **kwargs: object) -> object:
            place = line_of_megaslm()
            if not place.startswith(RUNS_ON_CPUS_ONLY):
                places.append(place)
            return method(*args, **kwargs)

        return noted

    with pytest.MonkeyPatch.context() as patch, WaitingOperators(places):
        for name in READING_METHODS:
            patch.setattr(Tensor, name, noting(getattr(Tensor, name)))
        yield places
