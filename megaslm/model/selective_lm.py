"""A Hugging Face causal LM whose forward ends in losses instead of logits.

Under ZeRO-3 a parameter is whole only inside the forward of the module that owns it, and a backward pass is prepared
for only by what the engine's forward returns. So the loss is computed here, inside the wrapped module's forward, and
the selection, with its collectives, reaches it as a callable.
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from megaslm.errors import ModelError
from megaslm.model.documents import attention_within_documents, document_positions
from megaslm.slm.choice import Choice, Every, Known
from megaslm.slm.head_pass import PLAIN_LOGITS
from megaslm.slm.token_loss import (
    HeadMethod,
    cache_bytes,
    selective_loss,
    token_losses,
    token_losses_and_entropies,
    weighted_loss,
)

CausalLM = Any
"""A transformers model for causal language modeling: `.model` gives hidden states, `.lm_head` is a linear layer."""


@dataclass(frozen=True)
class HeadSettings:
    """How the head comes by the gradient of a choice that depends on the losses; see `megaslm.slm.token_loss`.

    `method`: auto takes `cache` where the model computes in bf16 and the cache fits, else `bracket`. `cache_bytes`: the
    most that `cache` may hold.
    """

    method: Literal["auto", "cache", "bracket", "recompute"] = "auto"
    cache_bytes: int = 1 << 30

    def method_for(self, hidden: Tensor, vocab_size: int) -> HeadMethod:
        """The method for (T, D) hidden states."""
        if self.method != "auto":
            return self.method
        fits = cache_bytes(len(hidden), vocab_size) <= self.cache_bytes
        return "cache" if fits and hidden.dtype == torch.bfloat16 else "bracket"


class SelectiveHead(nn.Linear):
    """The language model's head. With targets it gives losses; without, logits, as the layer it replaces.

    Under ZeRO-3 the weight is whole inside `forward` alone, and gathered once for it.
    """

    transform = PLAIN_LOGITS
    settings = HeadSettings()

    def forward(  # type: ignore[override]
        self, hidden: Tensor, targets: Tensor | None = None, choice: Choice | None = None, *, entropies: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Losses of (T, D) hidden states and (T,) targets.

        With `choice`, before them the sum of the chosen ones; with `entropies`, after them those of the predictions.
        """
        if targets is None:
            return super().forward(hidden)
        if entropies:
            return token_losses_and_entropies(hidden, self.weight, targets, self.bias, self.transform)
        match choice:
            case None:
                return token_losses(hidden, self.weight, targets, self.bias, self.transform)
            case Every(mask):
                return weighted_loss(hidden, self.weight, targets, mask.float(), self.bias, self.transform)
            case Known():
                return self._known(hidden, targets, choice)
            case _:
                ones = torch.ones(targets.shape, dtype=torch.float32, device=targets.device)
                method = self.settings.method_for(hidden, self.weight.shape[0])
                return selective_loss(
                    hidden, self.weight, targets, ones, choice, self.bias, method=method, transform=self.transform
                )

    def _known(self, hidden: Tensor, targets: Tensor, known: Known) -> tuple[Tensor, Tensor]:
        """Runs over the rows that are wanted, and no others; the losses of those are 0."""
        ones = torch.ones(known.rows.shape, dtype=torch.float32, device=targets.device)
        total, chosen = weighted_loss(
            hidden[known.rows], self.weight, targets[known.rows], ones, self.bias, self.transform
        )
        losses = torch.zeros(targets.shape, dtype=chosen.dtype, device=targets.device)
        losses[known.rows] = chosen
        losses[known.rest] = token_losses(
            hidden[known.rest].detach(), self.weight, targets[known.rest], self.bias, self.transform
        )
        return total, losses


class SelectiveLM(nn.Module):
    """Rows of tokens in, losses out."""

    def __init__(
        self, lm: CausalLM, *, eos_id: int, document_isolation: bool, head: HeadSettings = HeadSettings()
    ) -> None:
        """Takes over `lm`: its head is replaced by a `SelectiveHead` that owns the very same parameters."""
        super().__init__()
        self.lm = lm
        self.lm.lm_head = _selective_head(lm.lm_head, head)
        self.eos_id = eos_id
        self.document_isolation = document_isolation
        self.window: int | None = getattr(lm.config, "sliding_window", None)

    def forward(self, tokens: Tensor, choice: Choice | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """The losses of a micro-batch.

        Args:
            tokens: (B, L+1) int64; target i is token i+1.
            choice: which of the B·L targets, in row order, to train on; None only measures.

        Returns:
            (B, L) float32 losses, detached; with `choice`, the differentiable float32 sum of the chosen first. Under a
            `Known` choice the losses of rows that it does not name are 0.

        Raises:
            NonFiniteScore: a target cannot be ranked.
        """
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        hidden = self._hidden_states(inputs).flatten(0, 1)
        if choice is None:
            return cast(Tensor, self.lm.lm_head(hidden, targets.flatten())).view(targets.shape)
        total, losses = self.lm.lm_head(hidden, targets.flatten(), choice)
        return total, losses.view(targets.shape)

    def measure(self, tokens: Tensor) -> Tensor:
        """The (B, L) float32 losses of (B, L+1) tokens, without gradients."""
        with torch.inference_mode():
            return cast(Tensor, self(tokens))

    def measure_with_entropy(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The (B, L) float32 losses of (B, L+1) tokens and the entropies of their predictions, without gradients."""
        targets = tokens[:, 1:]
        with torch.inference_mode():
            hidden = self._hidden_states(tokens[:, :-1]).flatten(0, 1)
            losses, entropies = self.lm.lm_head(hidden, targets.flatten(), entropies=True)
        return losses.view(targets.shape), entropies.view(targets.shape)

    def _hidden_states(self, inputs: Tensor) -> Tensor:
        if self.document_isolation:
            document, position = document_positions(inputs, self.eos_id)
            mask = attention_within_documents(document, self.window)
        else:
            position = torch.arange(inputs.shape[1], device=inputs.device)[None]
            mask = None
        output = self.lm.model(input_ids=inputs, attention_mask=mask, position_ids=position, use_cache=False)
        return cast(Tensor, output.last_hidden_state)


def _selective_head(head: nn.Module, settings: HeadSettings) -> SelectiveHead:
    if not isinstance(head, nn.Linear):
        raise ModelError(f"the model's head is a {type(head).__name__}; MegaSLM trains models with a linear lm_head")
    selective = SelectiveHead(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
    selective.weight = head.weight
    selective.bias = head.bias
    selective.settings = settings
    return selective
