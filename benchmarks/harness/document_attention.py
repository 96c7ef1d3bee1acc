"""Attention within documents without a mask: each document is a sequence of its own to torch's kernel for such.

A candidate to be measured, not what MegaSLM does. It needs a GPU.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import varlen
from transformers import AttentionInterface

from megaslm.model.documents import document_positions
from megaslm.model.selective_lm import CausalLM, SelectiveLM

_NAME = "megaslm_documents"


class DocumentAttentionLM(SelectiveLM):
    """Reads the rows of a batch as one row of documents, none of which is longer than a row."""

    def __init__(self, lm: CausalLM, *, eos_id: int) -> None:
        super().__init__(lm, eos_id=eos_id, document_isolation=True)
        AttentionInterface.register(_NAME, _attend)
        lm.set_attn_implementation(_NAME)

    def _hidden_states(self, inputs: Tensor) -> Tensor:
        _, position = document_positions(inputs, self.eos_id)
        starts = (position.flatten() == 0).nonzero().squeeze(1).to(torch.int32)
        output = self.lm.model(
            input_ids=inputs,
            position_ids=position,
            use_cache=False,
            document_bounds=F.pad(starts, (0, 1), value=inputs.numel()),
        )
        return output.last_hidden_state


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    document_bounds: Tensor,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: (B, heads, L, head size) in, (B, L, heads, head size) out."""
    batch, heads, length, size = query.shape
    # Keys and values are repeated for the queries that share them: not all versions of the kernel do that themselves.
    packed = [
        tensor.transpose(1, 2).flatten(0, 1).repeat_interleave(heads // tensor.shape[1], dim=1)
        for tensor in (query, key, value)
    ]
    attended = varlen.varlen_attn(
        *packed, document_bounds, document_bounds, length, length, scale=scaling, window_size=(-1, 0)
    )
    return attended.view(batch, length, heads, size), None
