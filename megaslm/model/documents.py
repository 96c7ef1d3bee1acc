"""Documents inside packed rows: where they begin and end, and attention that stays within them."""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from megaslm.dataset.packing import document_bounds
from megaslm.model.attention import flash
from megaslm.model.attention.operator import document_attention

if TYPE_CHECKING:
    from megaslm.model.filtered_backward import TrainedTokens

DOCUMENT_ATTENTION = "megaslm_documents"
"""The name of `attend` in transformers' registry of attention functions. transformers makes no mask for it."""

CPU_KERNEL, NO_KERNEL = "torch-cpu", "mask"
"""Names beside those of FlashAttention's releases, such as FA2."""
_REFUSED_OPTIONS = ("softcap", "position_bias", "s_aux", "cache", "output_attentions")
"""Arguments of transformers' attention functions with which attention is another than `attend` computes."""


@dataclass(eq=False)
class KeysOfAll:
    """The keys and values of all tokens in a layer, for a pass through the layer that only some of them make.

    `key`, `value`: (B, key heads, L, head size); a pass of all tokens sets them. `rows`: (n,) int64, the numbers of the
    tokens that make the pass, among all B·L; None: all of them.
    """

    key: Tensor | None = None
    value: Tensor | None = None
    rows: Tensor | None = None

    def joined(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Those of all tokens, (B, heads, L, head size), where (1, heads, n, head size) are of some.

        The queries of other tokens are 0.
        """
        if self.rows is None:
            self.key, self.value = key, value
            return query, key, value
        assert self.key is not None, "a pass of all tokens comes first"
        assert self.value is not None, "a pass of all tokens comes first"
        rows, _, length, head_size = self.key.shape
        nothing = query.new_zeros(rows, query.shape[1], length, head_size)
        return self._placed(nothing, query), self._placed(self.key, key), self._placed(self.value, value)

    def own(self, attended: Tensor) -> Tensor:
        """(1, n, heads, head size) of (B, L, heads, head size)."""
        return attended if self.rows is None else attended.flatten(0, 1).index_select(0, self.rows)[None]

    def _placed(self, everyone: Tensor, own: Tensor) -> Tensor:
        rows, _, length, _ = everyone.shape
        assert self.rows is not None
        flat = everyone.transpose(1, 2).flatten(0, 1).index_copy(0, self.rows, own.transpose(1, 2).flatten(0, 1))
        return flat.unflatten(0, (rows, length)).transpose(1, 2)


class Documents:
    """The documents of a micro-batch, for every layer of a model.

    The B rows are read as one row of T = B·L tokens; no document crosses the end of a row. `bounds`: (documents + 1,)
    int32, the first token of each document, then T. `positions`: (B, L) int64, of each token in its document.
    `max_length`: L, which no document exceeds. It stays the same from one micro-batch to the next, and so does the
    compiled code that reads it. `keys`: in a layer that keeps the keys of all tokens. `trained`: the tokens that have a
    backward pass through the upper layers; None where all have.
    """

    keys: KeysOfAll | None = None
    trained: "TrainedTokens | None" = None

    def __init__(self, bounds: Tensor, rows: int, length: int) -> None:
        """Takes the bounds of the documents in `rows` rows of `length` tokens."""
        tokens = torch.arange(rows * length, device=bounds.device)
        first_tokens = torch.repeat_interleave(bounds[:-1], bounds.diff(), output_size=rows * length)
        self.bounds = bounds
        self.positions = (tokens - first_tokens).view(rows, length)
        self.max_length = length
        self._has_kernel = bounds.device.type == "cpu" or flash.has_kernel(bounds.device)
        self._masks: dict[tuple[int | None, torch.dtype], Tensor] = {}
        # One compiled layer serves micro-batches with any number of documents.
        torch._dynamo.maybe_mark_dynamic(bounds, 0)

    @classmethod
    def of_tokens(cls, inputs: Tensor, eos_id: int, device: torch.device) -> "Documents":
        """The documents of (B, L) int64 inputs, for a model on `device`. The host reads inputs that are on a GPU."""
        bounds = torch.from_numpy(document_bounds(inputs.cpu().numpy(), eos_id))
        if device.type == "cuda":  # The copy waits for earlier work of the GPU unless the memory is pinned.
            bounds = bounds.pin_memory()
        return cls(bounds.to(device, non_blocking=True), *inputs.shape)

    @classmethod
    def whole_rows(cls, rows: int, length: int, device: torch.device) -> "Documents":
        """Each row is one document."""
        return cls(torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=device), rows, length)

    def with_keys(self, keys: KeysOfAll) -> "Documents":
        """The same documents, for one pass through one layer."""
        changed = copy.copy(self)
        changed.keys = keys
        return changed

    def takes(self, dtype: torch.dtype, head_size: int) -> bool:
        """Whether there is a kernel for documents, for heads of this size and type. Otherwise attention has a mask."""
        return self._has_kernel and (self.bounds.device.type == "cpu" or flash.takes(dtype, head_size))

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """The additive (B, 1, L, L) mask of a layer with this window: 0 where row i attends to column j, else -inf.

        None where every row is one document, and attention is causal over rows.
        """
        rows, length = self.positions.shape
        if len(self.bounds) == rows + 1 and (window is None or window >= length):
            return None
        if (window, dtype) not in self._masks:
            place = torch.arange(length, device=self.bounds.device)
            number = torch.searchsorted(self.bounds[1:], torch.arange(rows * length, device=place.device), right=True)
            number = number.view(rows, length)
            distance = place[:, None] - place[None, :]
            visible = (number[:, :, None] == number[:, None, :]) & (distance >= 0)
            if window is not None:
                visible &= distance < window
            hidden = torch.full(visible.shape, float("-inf"), dtype=dtype, device=place.device)
            self._masks[window, dtype] = hidden.masked_fill_(visible, 0.0)[:, None]
        return self._masks[window, dtype]


def kernel_name(config: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> str:
    """What computes attention for a model on `device`, as logs and provenance name it; without dropout."""
    if device.type == "cpu":
        return CPU_KERNEL
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return flash.implementation() if flash.has_kernel(device) and flash.takes(dtype, head_size) else NO_KERNEL


def attend(
    layer: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    documents: Documents | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention within documents, as transformers calls it for each layer with (B, heads, L, head size) queries.

    The window is the layer's own argument: its meaning in config.json differs between families and between layers.
    Without `documents`, as in calls from outside of MegaSLM, each row is one document. Masks are explicit only with
    dropout, and where a GPU has no kernel for documents: in float32, with heads of odd sizes, before Ampere.

    Returns:
        (B, L, heads, head size), and no weights.

    Raises:
        ValueError: the layer asks for attention that is not causal attention within documents.
    """
    keys = KeysOfAll() if documents is None or documents.keys is None else documents.keys
    query, key, value = keys.joined(query, key, value)
    _require_causal(layer, query, key, attention_mask, sliding_window, options)
    rows, heads, length, head_size = query.shape
    if documents is None:
        documents = Documents.whole_rows(rows, length, query.device)
    if dropout or not documents.takes(query.dtype, head_size):
        mask = documents.mask(sliding_window, query.dtype)
        attended, _ = sdpa_attention_forward(layer, query, key, value, mask, dropout=dropout, scaling=scaling)
        return keys.own(attended), None
    attended, _ = document_attention(
        query.transpose(1, 2).flatten(0, 1),
        key.transpose(1, 2).flatten(0, 1),
        value.transpose(1, 2).flatten(0, 1),
        documents.bounds,
        documents.max_length,
        sliding_window,
        head_size**-0.5 if scaling is None else scaling,
    )
    return keys.own(attended.view(rows, length, heads, head_size)), None


AttentionInterface.register(DOCUMENT_ATTENTION, attend)


def _require_causal(
    layer: nn.Module,
    query: Tensor,
    key: Tensor,
    attention_mask: Tensor | None,
    window: int | None,
    options: dict[str, Any],
) -> None:
    found = [name for name in _REFUSED_OPTIONS if options.get(name) is not None and options[name] is not False]
    if attention_mask is not None:
        found.append("attention_mask")
    if options.get("is_causal") is False or not getattr(layer, "is_causal", True):
        found.append("is_causal = False")
    if key.shape[2] != query.shape[2]:
        found.append(f"{key.shape[2]} keys for {query.shape[2]} queries")
    if window is not None and window < 1:
        found.append(f"sliding_window = {window}")
    if found:
        raise ValueError(
            f"{type(layer).__name__} asks for attention with {', '.join(found)}; expected causal attention within "
            "documents, each token seeing itself"
        )
