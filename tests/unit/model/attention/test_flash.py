"""The installed torch has FlashAttention's operators as `flash` calls them, which a machine without a GPU can tell.

On the meta device torch checks the arguments, and computes shapes and types alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from megaslm.model.attention import flash
from megaslm.model.attention.operator import document_attention

TOKENS, LONGEST, SCALE = 24, 12, 0.3


class Calls(TorchDispatchMode):
    """Keeps the named arguments of each call of an operator of FlashAttention."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[str, Mapping[str, Any]] = {}

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        names = [argument.name for argument in func._schema.arguments]
        if "flash" in func.name():
            self.of[func.overloadpacket.__name__] = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        return func(*args, **(kwargs or {}))


def tensors() -> list[Tensor]:
    """Query, key and value of grouped heads, and the bounds of three documents."""
    drawn = [torch.empty(TOKENS, heads, 16, dtype=torch.bfloat16, device="meta") for heads in (4, 2, 2)]
    return [*drawn, torch.empty(4, dtype=torch.int32, device="meta")]


@pytest.mark.parametrize(("window", "tokens_before", "is_causal"), [(None, -1, True), (5, 4, False)])
def test_torch_takes_the_arguments(window: int | None, tokens_before: int, is_causal: bool) -> None:
    query, key, value, bounds = tensors()
    with Calls() as calls:
        output, logsumexp = flash.forward(query, key, value, bounds, LONGEST, window, SCALE)
        gradients = flash.backward(output, query, key, value, output, logsumexp, bounds, LONGEST, window, SCALE)
    assert list(calls.of) == ["_flash_attention_forward", "_flash_attention_backward"]
    for call in calls.of.values():
        assert call["cum_seq_q"] is call["cum_seq_k"] is bounds
        assert (call["max_q"], call["max_k"], call["scale"]) == (LONGEST, LONGEST, SCALE)
        assert (call["window_size_left"], call["window_size_right"]) == (tokens_before, 0)
        assert call["is_causal"] is is_causal
        assert call["dropout_p"] == 0.0
    # What a compiler foresees of the operator that holds them.
    expected = document_attention(query, key, value, bounds, LONGEST, window, SCALE)
    for found, foreseen in zip((output, logsumexp), expected, strict=True):
        assert (found.shape, found.dtype, found.stride()) == (foreseen.shape, foreseen.dtype, foreseen.stride())
    for gradient, tensor in zip(gradients, (query, key, value), strict=True):
        assert (gradient.shape, gradient.dtype) == (tensor.shape, tensor.dtype)


def test_keys_stay_in_one_piece_where_torch_can_split_them() -> None:
    query, key, value, bounds = tensors()
    with Calls() as calls:
        flash.forward(query, key, value, bounds, LONGEST, None, SCALE)
    can_split = any(argument.name == "num_splits" for argument in flash._flash._schema.arguments)
    assert calls.of["_flash_attention_forward"].get("num_splits") == (1 if can_split else None)


def test_what_torch_itself_does_without_a_choice_is_flash_attention_2() -> None:
    assert flash.implementation() == "FA2"


@pytest.mark.parametrize(
    ("dtype", "head_size", "expected"),
    [
        (torch.bfloat16, 64, True),
        (torch.float16, 256, True),
        (torch.float32, 64, False),
        (torch.bfloat16, 12, False),
        (torch.bfloat16, 264, False),
    ],
)
def test_heads_that_it_computes(dtype: torch.dtype, head_size: int, expected: bool) -> None:
    assert flash.takes(dtype, head_size) is expected
