"""Attention within documents by an explicit mask, as MegaSLM computed it before `megaslm/model/attention`.

One additive (B, 1, L, L) mask is made for each micro-batch and serves all layers of one window.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from megaslm.model.documents import Documents
from megaslm.model.filtered_backward import TrainedTokens
from megaslm.model.selective_lm import CausalLM, SelectiveLM

_NAME = "megaslm_masked_documents"


class MaskedLM(SelectiveLM):
    """Isolates documents by a mask; without isolation attention is causal over the row."""

    def __init__(self, lm: CausalLM, *, eos_id: int, document_isolation: bool) -> None:
        super().__init__(lm, eos_id=eos_id, document_isolation=document_isolation)
        self.lm.set_attn_implementation(_NAME)

    def _hidden_states(
        self, tokens: Tensor, document_bounds: Tensor | None = None, trained: TrainedTokens | None = None
    ) -> tuple[Tensor, Tensor]:
        inputs = tokens[:, :-1]
        documents = Documents.of_tokens(inputs, self.eos_id, inputs.device) if self.document_isolation else None
        positions = torch.arange(inputs.shape[1], device=inputs.device)[None]
        output = self.lm.model(
            input_ids=inputs,
            position_ids=positions if documents is None else documents.positions,
            use_cache=False,
            documents=documents,
        )
        return output.last_hidden_state.flatten(0, 1), tokens[:, 1:]


def _attend(
    layer: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    documents: Documents | None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    mask = None if documents is None else documents.mask(sliding_window, query.dtype)
    return sdpa_attention_forward(layer, query, key, value, mask, **options)


AttentionInterface.register(_NAME, _attend)
