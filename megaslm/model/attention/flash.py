"""Attention within documents on a GPU: FlashAttention for sequences of various lengths, which needs no mask.

Calls the operators below `torch.nn.attention.varlen`: the arguments of that module differ between torch 2.10, 2.11 and
2.13, and later releases choose cuDNN by themselves. `activate` puts FlashAttention 3 or 4 in the place of torch's own
FlashAttention 2 behind these operators. The backward pass adds up in a fixed order only under
`torch.use_deterministic_algorithms(True)`.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import attention

from megaslm.config.schema import FlashAttention
from megaslm.errors import ConfigError

_FEWEST_CAPABILITY = (8, 0)
"""Compute capability of the first cards that FlashAttention 2 runs on (Ampere)."""
_LARGEST_HEAD = 256
_DTYPES = (torch.float16, torch.bfloat16)
_REQUIRED: dict[str, tuple[tuple[int, ...], str]] = {
    "FA3": ((9,), "the package of hopper/ in FlashAttention's sources, which has to be built"),
    "FA4": ((9, 10), "the package flash-attn-4 (make install EXTRAS=fa4)"),
}
"""Of the implementations that torch does not bring: major compute capabilities, and what has to be installed."""

_flash = torch.ops.aten._flash_attention_forward.default
_flash_backward = torch.ops.aten._flash_attention_backward.default


@cache
def has_kernel(device: torch.device) -> bool:
    """Whether FlashAttention runs on this device."""
    return (
        device.type == "cuda"
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= _FEWEST_CAPABILITY
    )


def takes(dtype: torch.dtype, head_size: int) -> bool:
    """Whether FlashAttention computes in this dtype with heads of this size."""
    return dtype in _DTYPES and head_size % 8 == 0 and head_size <= _LARGEST_HEAD


def activate(chosen: FlashAttention, device: torch.device, *, name: str) -> None:
    """Lets an implementation compute attention in this process from now on. `name` is the setting's, for the message.

    Raises:
        ConfigError: `device` is a GPU of another generation, or torch cannot load the implementation.
    """
    if chosen == implementation():
        return
    if chosen == "FA2":
        attention.restore_flash_attention_impl()
        return
    capabilities, required = _REQUIRED[chosen]
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] not in capabilities:
        found = ".".join(map(str, torch.cuda.get_device_capability(device)))
        expected = " or ".join(f"{major}.x" for major in capabilities)
        raise ConfigError(
            f"{name} {chosen}: needs a GPU of compute capability {expected}, this one has {found}; use FA2"
        )
    try:
        attention.activate_flash_attention_impl(chosen)
        # A release of torch without this could not name what computes.
        attention.current_flash_attention_impl()
    except (AttributeError, ImportError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{name} {chosen}: needs {required}; torch says: {error}; install it, or use FA2") from error


def implementation() -> str:
    """The active implementation: FA2 is torch's own."""
    return getattr(attention, "current_flash_attention_impl", lambda: None)() or "FA2"


def forward(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, max_length: int, window: int | None, scale: float
) -> tuple[Tensor, Tensor]:
    """See `megaslm.model.attention.operator.document_attention`."""
    output, logsumexp, *_ = _flash(
        query,
        key,
        value,
        bounds,
        bounds,
        max_length,
        max_length,
        0.0,
        window is None,
        return_debug_mask=False,
        scale=scale,
        **_window(window),
        **_one_split(),
    )
    return output.contiguous(), logsumexp.contiguous()


def backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    bounds: Tensor,
    max_length: int,
    window: int | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `megaslm.model.attention.operator.document_attention_backward`."""
    # Without dropout the state of the random generator is not read.
    no_state = torch.zeros(2, dtype=torch.uint64, device=query.device)
    of_query, of_key, of_value = _flash_backward(
        gradient.contiguous(),
        query,
        key,
        value,
        output,
        logsumexp,
        bounds,
        bounds,
        max_length,
        max_length,
        0.0,
        window is None,
        no_state,
        torch.empty(0, device=query.device),
        scale=scale,
        **_window(window),
    )
    return of_query.contiguous(), of_key.contiguous(), of_value.contiguous()


def _window(window: int | None) -> dict[str, int]:
    """The window as the kernel counts it: tokens before and after a token's own, -1 for all."""
    return {"window_size_left": -1 if window is None else window - 1, "window_size_right": 0}


@cache
def _one_split() -> dict[str, Any]:
    """Keeps the keys of a document in one piece where the kernel could split them.

    The split depends on what else is in the batch, and so would the results. Releases of torch without this argument
    never split sequences of various lengths.
    """
    named = {argument.name for argument in _flash._schema.arguments}
    return {"num_splits": 1} if "num_splits" in named else {}
