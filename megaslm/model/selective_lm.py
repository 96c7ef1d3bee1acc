"""A Hugging Face causal LM whose forward ends in losses instead of logits.

Under ZeRO-3 a parameter is whole only inside the forward of the module that owns it, and a backward pass is prepared
for only by what the engine's forward returns. So the loss is computed here, inside the wrapped module's forward, and
the selection, with its collectives, reaches it as a callable.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from megaslm.model.documents import DOCUMENT_ATTENTION, Documents
from megaslm.model.selective_head import AUTO_HEAD, HeadSettings, SelectiveHead
from megaslm.slm.choice import Choice, HeadOutput

CausalLM = Any
"""A transformers model for causal language modeling: `.model` gives hidden states, `.lm_head` is a linear layer."""

_TOKENS_AT_ONCE_ON_CPU = 1024


class SelectiveLM(nn.Module):
    """Rows of tokens in, losses out."""

    def __init__(self, lm: CausalLM, *, eos_id: int, document_isolation: bool, head: HeadSettings = AUTO_HEAD) -> None:
        """Takes over `lm`: its head is replaced by a `SelectiveHead` that owns the very same parameters.

        Its attention becomes one that ends at document borders.
        """
        super().__init__()
        self.lm = lm
        self.lm.lm_head = SelectiveHead.taking_over(lm, head)
        self.lm.set_attn_implementation(DOCUMENT_ATTENTION)
        self.eos_id = eos_id
        self.document_isolation = document_isolation

    def forward(self, tokens: Tensor, choice: Choice | None = None) -> Tensor | HeadOutput:
        """The losses of a micro-batch.

        Args:
            tokens: (B, L+1) int64; target i is token i+1.
            choice: which of the B·L targets, in row order, to train on; None only measures.

        Returns:
            (B, L) float32 losses, detached; with `choice` a `HeadOutput` of (B, L) targets. Under a
            `Known` choice the losses of rows that it does not name are 0. Where a target of any rank cannot be ranked,
            the total is NaN on all of them, and so is the norm of its gradient.
        """
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        hidden = self._hidden_states(inputs).flatten(0, 1)
        if choice is None:
            return cast(Tensor, self.lm.lm_head(hidden, targets.flatten())).view(targets.shape)
        return cast(HeadOutput, self.lm.lm_head(hidden, targets.flatten(), choice)).view_as(targets)

    def measure(self, tokens: Tensor) -> Tensor:
        """The (B, L) float32 losses of (B, L+1) tokens, without gradients."""
        with torch.inference_mode():
            return torch.cat([self(rows) for rows in _at_once(tokens)])

    def measure_with_entropy(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The (B, L) float32 losses of (B, L+1) tokens and the entropies of their predictions, without gradients."""
        with torch.inference_mode():
            losses, entropies = zip(*(self._with_entropy(rows) for rows in _at_once(tokens)), strict=True)
            return torch.cat(losses), torch.cat(entropies)

    def _with_entropy(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        hidden = self._hidden_states(inputs).flatten(0, 1)
        losses, entropies = self.lm.lm_head(hidden, targets.flatten(), entropies=True)
        return losses.view(targets.shape), entropies.view(targets.shape)

    def _hidden_states(self, inputs: Tensor) -> Tensor:
        documents = Documents(inputs, self.eos_id if self.document_isolation else None)
        output = self.lm.model(input_ids=inputs, position_ids=documents.positions, use_cache=False, documents=documents)
        return cast(Tensor, output.last_hidden_state)


def _at_once(tokens: Tensor) -> tuple[Tensor, ...]:
    """The rows of (B, L+1) tokens in groups that go through the model together; on a GPU all do.

    A CPU has the same products to compute, and groups whose activations stay in its cache are done sooner.
    """
    if tokens.is_cuda:
        return (tokens,)
    return tokens.split(max(1, _TOKENS_AT_ONCE_ON_CPU // (tokens.shape[1] - 1)))
