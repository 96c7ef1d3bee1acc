"""A Hugging Face causal LM whose forward ends in losses instead of logits.

Under ZeRO-3 a parameter is whole only inside the forward of the module that owns it, and a backward pass is prepared
for only by what the engine's forward returns. So the loss is computed here, inside the wrapped module's forward, and
the selection, with its collectives, reaches it as a callable.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from megaslm.errors import ModelError
from megaslm.model.documents import attention_within_documents, document_positions
from megaslm.slm.token_loss import Select, selective_loss, token_losses

CausalLM = Any
"""A transformers model for causal language modeling: `.model` gives hidden states, `.lm_head` is a linear layer."""


class SelectiveHead(nn.Linear):
    """The language model's head. With targets it gives losses; without, logits, as the layer it replaces."""

    def forward(  # type: ignore[override]
        self, hidden: Tensor, targets: Tensor | None = None, select: Select | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Losses of (T, D) hidden states and (T,) targets; with `select`, before them the sum of the selected."""
        if targets is None:
            return super().forward(hidden)
        if select is None:
            return token_losses(hidden, self.weight, targets, self.bias)
        row_weight = torch.ones(targets.shape, dtype=torch.float32, device=targets.device)
        return selective_loss(hidden, self.weight, targets, row_weight, select, self.bias)


class SelectiveLM(nn.Module):
    """Rows of tokens in, losses out."""

    def __init__(self, lm: CausalLM, *, eos_id: int, document_isolation: bool) -> None:
        """Takes over `lm`: its head is replaced by a `SelectiveHead` that owns the very same parameters."""
        super().__init__()
        self.lm = lm
        self.lm.lm_head = _selective_head(lm.lm_head)
        self.eos_id = eos_id
        self.document_isolation = document_isolation
        self.window: int | None = getattr(lm.config, "sliding_window", None)

    def forward(self, tokens: Tensor, select: Select | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """The losses of a micro-batch.

        Args:
            tokens: (B, L+1) int64; target i is token i+1.
            select: marks the targets to train on, given all B·L losses in row order; None only measures.

        Returns:
            (B, L) float32 losses, detached; with `select`, the differentiable float32 sum of the selected first.
        """
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        hidden = self._hidden_states(inputs).flatten(0, 1)
        if select is None:
            return cast(Tensor, self.lm.lm_head(hidden, targets.flatten())).view(targets.shape)
        total, losses = self.lm.lm_head(hidden, targets.flatten(), select)
        return total, losses.view(targets.shape)

    def measure(self, tokens: Tensor) -> Tensor:
        """The (B, L) float32 losses of (B, L+1) tokens, without gradients."""
        with torch.inference_mode():
            return cast(Tensor, self(tokens))

    def _hidden_states(self, inputs: Tensor) -> Tensor:
        if self.document_isolation:
            document, position = document_positions(inputs, self.eos_id)
            mask = attention_within_documents(document, self.window)
        else:
            position = torch.arange(inputs.shape[1], device=inputs.device)[None]
            mask = None
        output = self.lm.model(input_ids=inputs, attention_mask=mask, position_ids=position, use_cache=False)
        return cast(Tensor, output.last_hidden_state)


def _selective_head(head: nn.Module) -> SelectiveHead:
    if not isinstance(head, nn.Linear):
        raise ModelError(f"the model's head is a {type(head).__name__}; MegaSLM trains models with a linear lm_head")
    selective = SelectiveHead(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
    selective.weight = head.weight
    selective.bias = head.bias
    return selective
