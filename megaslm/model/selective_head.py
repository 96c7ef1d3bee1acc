"""The head of a language model as a module of its own, in which alone its weight is whole under ZeRO-3."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from megaslm.errors import ModelError, NonFiniteScore
from megaslm.slm.choice import ByLoss, Choice, Every, HeadOutput, Known, no_threshold
from megaslm.slm.head_pass import PLAIN_LOGITS, LogitTransform
from megaslm.slm.token_loss import (
    HeadMethod,
    cache_bytes,
    selective_loss,
    token_losses,
    token_losses_and_entropies,
    weighted_loss,
)


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


AUTO_HEAD = HeadSettings()


class SelectiveHead(nn.Linear):
    """The language model's head. With targets it gives losses; without, logits, as the layer it replaces.

    Under ZeRO-3 the weight is whole inside `forward` alone, and gathered once for it.
    """

    transform = PLAIN_LOGITS
    settings = AUTO_HEAD

    @classmethod
    def taking_over(cls, lm: Any, settings: HeadSettings) -> "SelectiveHead":
        """A head that owns the very parameters of `lm.lm_head`, and does to logits what `lm` does.

        Raises:
            ModelError: the model's head is not a linear layer.
        """
        if not isinstance(lm.lm_head, nn.Linear):
            raise ModelError(
                f"the model's head is a {type(lm.lm_head).__name__}; MegaSLM trains models with a linear lm_head"
            )
        head = cls(lm.lm_head.in_features, lm.lm_head.out_features, bias=lm.lm_head.bias is not None, device="meta")
        head.weight = lm.lm_head.weight
        head.bias = lm.lm_head.bias
        head.settings = settings
        head.transform = logit_transform(lm.config)
        return head

    def forward(  # type: ignore[override]
        self, hidden: Tensor, targets: Tensor | None = None, choice: Choice | None = None, *, entropies: bool = False
    ) -> Tensor | tuple[Tensor, Tensor] | HeadOutput:
        """Losses of (T, D) hidden states and (T,) targets.

        With `choice` a `HeadOutput`, whose total is NaN on all ranks where a target cannot be ranked; with
        `entropies`, after the losses those of the predictions.
        """
        if targets is None:
            return super().forward(hidden)
        if entropies:
            return token_losses_and_entropies(hidden, self.weight, targets, self.bias, self.transform)
        match choice:
            case None:
                return token_losses(hidden, self.weight, targets, self.bias, self.transform)
            case Every(mask):
                chosen = weighted_loss(hidden, self.weight, targets, mask.float(), self.bias, self.transform)
                return HeadOutput(*chosen, mask, no_threshold(hidden.device))
            case Known():
                return self._known(hidden, targets, choice)
            case _:
                return self._by_loss(hidden, targets, choice)

    def _by_loss(self, hidden: Tensor, targets: Tensor, choice: ByLoss) -> HeadOutput:
        ones = torch.ones(targets.shape, dtype=torch.float32, device=targets.device)
        method = self.settings.method_for(hidden, self.weight.shape[0])
        try:
            return selective_loss(
                hidden, self.weight, targets, ones, choice, self.bias, method=method, transform=self.transform
            )
        except NonFiniteScore:
            # DeepSpeed would not get over an error that leaves a module, and waits for the backward pass of every
            # rank: nothing is chosen, and the NaN makes every engine leave this step's update out.
            every_row = torch.arange(len(targets), device=targets.device)
            nothing = Known(torch.zeros_like(targets, dtype=torch.bool), every_row[:0], rest=every_row)
            output = self._known(hidden, targets, nothing)
            return output._replace(total=output.total * torch.nan)

    def _known(self, hidden: Tensor, targets: Tensor, known: Known) -> HeadOutput:
        """Runs over the rows that are wanted, and no others; the losses of those are 0."""
        ones = torch.ones(known.rows.shape, dtype=torch.float32, device=targets.device)
        total, chosen = weighted_loss(
            hidden.index_select(0, known.rows), self.weight, targets[known.rows], ones, self.bias, self.transform
        )
        losses = torch.zeros(targets.shape, dtype=chosen.dtype, device=targets.device)
        losses[known.rows] = chosen
        losses[known.rest] = token_losses(
            hidden.detach()[known.rest], self.weight, targets[known.rest], self.bias, self.transform
        )
        return HeadOutput(total, losses, known.mask, no_threshold(hidden.device))


def logit_transform(config: PretrainedConfig) -> LogitTransform:
    """What the family's own model does with the head's product; another family's key in config.json means nothing."""
    return LogitTransform(scale=1.0 / float(config.logits_scaling)) if config.model_type == "granite" else PLAIN_LOGITS
