"""Documents inside packed rows: the position of each token in its document, and the tokens that it may attend to."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

DOCUMENT_ATTENTION = "megaslm_documents"
"""The name of `attend` in transformers' registry of attention functions."""


class Documents:
    """The documents of a micro-batch's rows, for every layer of a model: positions, and masks that end at documents.

    Masks are explicit: from position ids alone the model library would have to guess the documents, and an all-ones
    mask beside them silently switches isolation off. One mask serves all layers with the same window.
    """

    def __init__(self, inputs: Tensor, eos_id: int | None) -> None:
        """Takes (B, L) int64 inputs. Without an `eos_id` every row is one document."""
        self._isolated = eos_id is not None
        self._masks: dict[int | None, Tensor] = {}
        if eos_id is None:
            self.positions = torch.arange(inputs.shape[1], device=inputs.device)[None]
            self._numbers = torch.zeros_like(self.positions)
        else:
            self._numbers, self.positions = document_positions(inputs, eos_id)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """The additive attention mask of a layer with this window; None where plain causal attention is equivalent."""
        if not self._isolated and (window is None or window >= self._numbers.shape[1]):
            return None
        if window not in self._masks:
            self._masks[window] = attention_within_documents(self._numbers, window, dtype)
        return self._masks[window]


def attend(
    layer: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    documents: Documents | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention within documents, as transformers calls it for each layer with (B, heads, L, head size) queries.

    The window is the layer's own argument: its meaning in config.json differs between families and between layers.
    Without `documents`, as in calls from outside of MegaSLM, each row is one document.
    """
    if documents is None:
        documents = Documents(torch.empty(query.shape[0], query.shape[2], device=query.device), eos_id=None)
    return sdpa_attention_forward(layer, query, key, value, documents.mask(sliding_window, query.dtype), **options)


AttentionInterface.register(DOCUMENT_ATTENTION, attend)


def document_positions(inputs: Tensor, eos_id: int) -> tuple[Tensor, Tensor]:
    """Numbers the documents of each row and the tokens of each document.

    A document starts at a row's first token and after every EOS.

    Args:
        inputs: (B, L) int64.

    Returns:
        The document number and the position within the document, both (B, L) int64 and counted from 0.
    """
    starts = torch.zeros_like(inputs, dtype=torch.bool)
    starts[:, 1:] = inputs[:, :-1] == eos_id
    place = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
    start_of_document = torch.where(starts, place, 0).cummax(dim=1).values
    return starts.cumsum(dim=1), place - start_of_document


def attention_within_documents(document: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """Causal attention that ends at document borders and at the layer's sliding window, if it has one.

    The mask is additive: torch would convert a boolean mask in every layer, and in training keep the result until the
    layer's backward pass.

    Args:
        document: (B, L) int64, document numbers.
        window: how many tokens a token attends to, itself included; None for all.
        dtype: of the queries.

    Returns:
        (B, 1, L, L), 0 where row i attends to column j, else -inf.
    """
    length = document.shape[1]
    place = torch.arange(length, device=document.device)
    distance = place[:, None] - place[None, :]
    visible = document[:, :, None] == document[:, None, :]
    visible &= distance >= 0
    if window is not None:
        visible &= distance < window
    mask = torch.full(visible.shape, float("-inf"), dtype=dtype, device=document.device)
    return mask.masked_fill_(visible, 0.0)[:, None]
