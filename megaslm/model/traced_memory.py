"""The activations of a model, traced on fake tensors: operators give shapes and sizes, and allocate nothing.

Two layers are traced. All layers are alike, so each further one adds what the second one keeps.
"""

import copy
import weakref
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PretrainedConfig

from megaslm.config.plan import ParameterCounts
from megaslm.config.schema import Recompute
from megaslm.model.decoder_layers import prepare_layers
from megaslm.model.documents import DOCUMENT_ATTENTION, Documents
from megaslm.model.families import FAMILIES
from megaslm.model.selective_lm import CausalLM

_TRACED_LAYERS = 2
_Traced = tuple["TrunkMemory", int]
_traced: dict[tuple[str, Recompute, torch.dtype, int], _Traced] = {}
_counted: dict[str, tuple[ParameterCounts, int]] = {}
"""What was traced and counted in this process: `--fit` asks for the same again and again."""


@dataclass(frozen=True)
class TrunkMemory:
    """Bytes that the passes through a model without its head take beside weights and gradients.

    Layers are those that are not compiled: compiled ones keep less. Workspaces of kernels are left out.
    """

    kept_bytes: int
    """Held from the forward pass to the backward pass."""
    forward_bytes: int
    """The most at once in the forward pass, `kept_bytes` so far included."""
    backward_bytes: int
    """The most at once in the backward pass, what is still kept and the gradient of the head's input included."""

    def times(self, rows: int) -> "TrunkMemory":
        """That of so many times the rows."""
        return TrunkMemory(*(rows * value for value in astuple(self)))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operators make while it is entered, as long as they live."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """`known` tensors are not counted."""
        super().__init__()
        self.bytes = 0
        self.peak_bytes = 0
        self._alive = {tensor.untyped_storage()._cdata for tensor in known}

    def forget_peak(self) -> None:
        """From here on the peak counts."""
        self.peak_bytes = self.bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator, and counts what it made."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self.bytes += size
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.bytes -= size


def with_layers(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """The configuration of the same model with another number of layers."""
    changed = copy.deepcopy(config)
    changed.num_hidden_layers = layers
    if getattr(changed, "layer_types", None):
        changed.layer_types = changed.layer_types[:1] * layers
    return changed


def parameter_counts(config: PretrainedConfig) -> tuple[ParameterCounts, int]:
    """The exact number of parameters of a model, by part, and that of one decoder layer."""
    key = config.to_json_string(use_diff=False)
    if key not in _counted:
        _counted[key] = _count_parameters(config)
    return _counted[key]


def _count_parameters(config: PretrainedConfig) -> tuple[ParameterCounts, int]:
    with torch.device("meta"):
        lm = _built(with_layers(config, 1), torch.float32)
    layer = _elements(lm.model.layers)
    embedding = _elements(lm.model.embed_tokens)
    others = _elements(lm.model) - layer - embedding
    shares = lm.lm_head.weight is lm.model.embed_tokens.weight
    head = _elements(lm.lm_head) - (embedding if shares else 0)
    return ParameterCounts(embedding, config.num_hidden_layers * layer + others, head), layer


def trunk_memory(
    config: PretrainedConfig, recompute: Recompute, dtype: torch.dtype, *, rows: int, length: int
) -> TrunkMemory:
    """What a micro-batch of `rows` rows of `length` targets takes in a model's layers and embedding.

    Args:
        config: of the model.
        recompute: what the backward pass computes again.
        dtype: of weights and activations.
        rows: in the micro-batch.
        length: targets per row.
    """
    layers = min(_TRACED_LAYERS, config.num_hidden_layers)
    few = with_layers(config, layers)
    key = (few.to_json_string(use_diff=False), recompute, dtype, length)
    if key not in _traced:
        _traced[key] = traced_layers(few, recompute, dtype, length=length)
    traced, of_layer = _traced[key]
    further = of_layer * (config.num_hidden_layers - layers)
    return TrunkMemory(*(value + further for value in astuple(traced))).times(rows)


def traced_layers(
    config: PretrainedConfig, recompute: Recompute, dtype: torch.dtype, *, length: int
) -> tuple[TrunkMemory, int]:
    """What one row of `length` targets takes in a model of all the layers of `config`, and what its last layer keeps.

    The most that is held at once is held in the last layer, by either pass: so each further layer adds what one keeps.
    Nothing is allocated.
    """
    with FakeTensorMode():
        lm = _built(config, dtype)
        lm.set_attn_implementation(DOCUMENT_ATTENTION)
        prepare_layers(lm.train(), recompute=recompute, compiled=False)
        for parameter in lm.parameters():
            # Where gradients are kept depends on ZeRO's stage; they are counted there.
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
        with LiveBytes([*lm.parameters(), *lm.buffers()]) as live:
            held: list[int] = []
            # The last layer begins and ends: at both times the model holds one layer's result beside what is kept.
            for module in (lm.model.layers[-1], getattr(lm.model, FAMILIES[config.model_type].final_norm)):
                module.register_forward_pre_hook(lambda *_: held.append(live.bytes))
            documents = Documents.whole_rows(1, length, torch.device("cpu"))
            tokens = torch.zeros(1, length, dtype=torch.int64)
            hidden = lm.model(
                input_ids=tokens, position_ids=documents.positions, use_cache=False, documents=documents
            ).last_hidden_state
            kept, forward = live.bytes, live.peak_bytes
            gradient = torch.empty_like(hidden)
            live.forget_peak()
            hidden.backward(gradient)
            before, after = held
            return TrunkMemory(kept, forward, live.peak_bytes), after - before


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _built(config: PretrainedConfig, dtype: torch.dtype) -> CausalLM:
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False)


def _elements(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
