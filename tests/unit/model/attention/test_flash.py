"""The installed torch has FlashAttention's operators as `flash` calls them, which a machine without a GPU can tell.

On the meta device torch checks the arguments, and computes shapes and types alone.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor, library
from torch._ops import OpOverload
from torch.nn.attention import _registry
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig

from megaslm.config.schema import FlashAttention
from megaslm.errors import ConfigError
from megaslm.model.attention import flash
from megaslm.model.attention.operator import document_attention
from megaslm.model.documents import kernel_name
from tests.masked import masked_attention
from tests.messages import Says

CPU = torch.device("cpu")
SETTING = "model.flash_attention ="
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


class Installed:
    """An implementation whose forward pass also runs on a CPU, as torch registers and removes it."""

    def __init__(self) -> None:
        self._library: library.Library | None = library.Library("aten", "IMPL")
        self._library.impl("_flash_attention_forward", self._forward, "CPU")

    def remove(self) -> None:
        """Gives the operator back to torch's own."""
        self._library = None

    @staticmethod
    def _forward(
        query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, *_: Any, **named: Any
    ) -> tuple[Tensor, ...]:
        found = masked_attention(query, key, value, bounds, LONGEST, None, named["scale"])
        return *found, *(query.new_empty(0) for _ in range(3))


def test_an_implementation_that_is_chosen_computes_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_registry._FLASH_ATTENTION_IMPLS, "FA3", Installed)
    monkeypatch.setattr(flash, "has_kernel", lambda _: True)
    named = partial(kernel_name, AutoConfig.for_model("llama"), torch.device("cuda"), torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(TOKENS, heads, 16, generator=generator) for heads in (4, 2, 2)]
    bounds = torch.tensor([0, 12, 15, TOKENS], dtype=torch.int32)
    flash.activate("FA3", CPU, name=SETTING)
    try:
        assert named() == "FA3"
        found = flash.forward(*drawn, bounds, LONGEST, None, SCALE)
    finally:
        flash.activate("FA2", CPU, name=SETTING)
    assert named() == "FA2"
    torch.testing.assert_close(found, masked_attention(*drawn, bounds, LONGEST, None, SCALE))
    # torch's own has no kernel for a CPU.
    with pytest.raises(RuntimeError, match="CPU"):
        flash.forward(*drawn, bounds, LONGEST, None, SCALE)


@pytest.mark.parametrize(
    ("chosen", "module", "package"),
    [("FA3", "flash_attn_interface", "hopper"), ("FA4", "flash_attn.cute.interface", "EXTRAS=fa4")],
)
def test_an_implementation_that_is_not_installed_is_refused(
    chosen: FlashAttention, module: str, package: str, monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    for name in accumulate(module.split("."), "{}.{}".format):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError) as refused:
        flash.activate(chosen, CPU, name=SETTING)
    says(refused, SETTING, chosen, package)
    assert flash.implementation() == "FA2"


def test_an_implementation_for_other_gpus_is_refused(monkeypatch: pytest.MonkeyPatch, says: Says) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    with pytest.raises(ConfigError) as refused:
        flash.activate("FA4", torch.device("cuda", 0), name=SETTING)
    says(refused, SETTING, "FA4", "9.x", "10.x", "8.6")


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
