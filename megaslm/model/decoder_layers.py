"""How decoder layers are run: compiled or not, and what their backward pass recomputes.

The `forward` of each layer object is replaced. Parameters and their names stay as they are, and so do hooks, which run
outside of `forward`: under ZeRO-3 a layer is gathered before the compiled code and released after it.
"""

import logging
from collections.abc import Callable
from functools import cache, partial
from itertools import count
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from megaslm.config.schema import Compile, Recompute
from megaslm.errors import ConfigError
from megaslm.model.documents import Documents
from megaslm.model.filtered_backward import FilteredLayer, LayerCall
from megaslm.slm.toolchain import lacking_for_cpu, lacking_for_gpu

_Run = Callable[..., Tensor]
"""Takes a decoder layer and its arguments, and gives the new hidden states."""
_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
_ATTENTION = ("aten._scaled_dot_product_", "megaslm.")
"""How the operators of attention begin: torch's own, and MegaSLM's."""

# It warns once that a selective policy forbids operators that write in place; `kept_products` sees to that.
logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)


def decoder_layers(lm: Any) -> list[nn.Module]:
    """The decoder layers of a transformers model for causal language modeling, first to last."""
    return list(lm.model.layers)


def is_compiled(setting: Compile, device: torch.device, *, name: str) -> bool:
    """Whether layers on `device` are compiled. `name` is the setting's, for the message.

    Raises:
        ConfigError: the setting is `on`, and the machine lacks what compiling needs.
    """
    if setting == "auto":
        return _why_not_compiled(setting, device) is None
    lacking = lacking_for_gpu() if device.type == "cuda" else lacking_for_cpu()
    if setting == "on" and lacking is not None:
        raise ConfigError(
            f"{name} on: {lacking} on this machine, which compiling needs; install it, or use auto or off"
        )
    return setting == "on"


def compile_line(setting: Compile, device: torch.device, *, name: str) -> str | None:
    """What a user is told of compiling: why `auto` does not, or that the first pass takes long. None with `off`."""
    if is_compiled(setting, device, name=name):
        return "the decoder layers are compiled in the first pass, which may take minutes"
    why_not = _why_not_compiled(setting, device)
    return None if why_not is None else f"the decoder layers are not compiled: {why_not} ({name} auto)"


def _why_not_compiled(setting: Compile, device: torch.device) -> str | None:
    """Why `auto` does not compile layers on `device`; None where it does, or where the user decided."""
    if setting != "auto":
        return None
    return lacking_for_gpu() if device.type == "cuda" else "there is no GPU"


def prepare_layers(lm: Any, *, recompute: Recompute, compiled: bool, filtered: int = 0) -> None:
    """Replaces the `forward` of every decoder layer of a transformers model for causal language modeling.

    Layers that are neither compiled nor recomputed stay as they are. The uppermost `filtered` layers, which are never
    compiled, may leave tokens out of their backward pass; see `megaslm.model.filtered_backward`.

    Layers of one kind share their compiled code, one graph for each shape of their input. They are compiled only for
    the mode that the model is in now, training or evaluation: the held-out rows of a training run come in batches of
    many sizes, and each would be compiled anew.
    """
    layers = decoder_layers(lm)
    exact = len(layers) - filtered
    for number, layer in enumerate(layers):
        run = _recomputing(recompute, kept_products(layer))
        if number >= exact:
            layer.forward = partial(_forward, layer, run, partial(_filtering, run, number == exact), lm.training)
        elif recompute != "none" or compiled:
            layer.forward = partial(_forward, layer, run, _compiled(run) if compiled else run, lm.training)


def kept_products(layer: nn.Module) -> tuple[bool, ...]:
    """Which results of a decoder layer's matrix products `recompute: selective` keeps, in the order of their calls.

    Every second one, from the second on: so the last one is not, which no backward pass needs. A product with a bias is
    never kept, since DeepSpeed's linear layer adds the bias in place.
    """
    linear = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    return tuple(number % 2 == 1 and module.bias is None for number, module in enumerate(linear))


def _forward(
    layer: nn.Module, run: _Run, run_in_mode: _Run, mode: bool, hidden: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    documents: Documents | None = kwargs.get("documents")
    if documents is not None:
        attention: Any = layer.self_attn
        if (layer.training and attention.attention_dropout) or not documents.takes(hidden.dtype, attention.head_dim):
            # Made here, since compiled and recomputed code must not write into an object from outside.
            window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
            documents.mask(window, hidden.dtype)
    return (run_in_mode if layer.training == mode else run)(layer, hidden, *args, **kwargs)


def _filtering(
    run: _Run, is_lowest: bool, layer: nn.Module, hidden: Tensor, *args: Any, documents: Documents, **kwargs: Any
) -> Tensor:
    trained = documents.trained
    if trained is None or not torch.is_grad_enabled():
        return run(layer, hidden, *args, documents=documents, **kwargs)
    call = LayerCall(layer, is_lowest, trained, args, {**kwargs, "documents": documents})
    return cast(Tensor, FilteredLayer.apply(hidden, call, *call.parameters))


def _run(layer: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    return type(layer).forward(layer, *args, **kwargs)


@cache
def _compiled(run: _Run) -> _Run:
    # A graph break would cost what compiling gains, and pass unnoticed.
    return torch.compile(run, dynamic=False, fullgraph=True)


@cache
def _recomputing(recompute: Recompute, kept: tuple[bool, ...]) -> _Run:
    """A layer's forward pass whose backward pass recomputes what `recompute` says."""
    if recompute == "none":
        return _run
    if recompute == "full":
        return partial(checkpoint, _run, use_reentrant=False)
    return partial(checkpoint, _run, use_reentrant=False, context_fn=partial(_keeping, kept))


def _keeping(kept: tuple[bool, ...]) -> tuple[Any, Any]:
    """The contexts of one forward pass and its recomputation."""
    products = count()

    def policy(_: object, operator: object, *args: object, **kwargs: object) -> CheckpointPolicy:
        keeps = kept[next(products)] if operator in _PRODUCTS else str(operator).startswith(_ATTENTION)
        return CheckpointPolicy.MUST_SAVE if keeps else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
