"""A model as transformers computes it, without document isolation: it continues texts and measures given ones."""

from pathlib import Path

import torch
from torch import Tensor

from megaslm.model.decoding import DecodingStep, context_tokens, next_logits
from megaslm.model.load import load_pretrained
from megaslm.model.selective_lm import CausalLM, logit_scale
from megaslm.slm.measure import Measure, Measured, measure


class PlainLM:
    """A model of a Hugging Face folder, as transformers computes it."""

    def __init__(self, lm: CausalLM) -> None:
        """Takes a model on its device, in evaluation mode, with transformers' attention."""
        self._lm = lm
        self.device: torch.device = lm.device
        self.context_tokens = context_tokens(lm)
        self.vocab_size: int = lm.config.vocab_size

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device) -> "PlainLM":
        """The model of a folder. Raises ModelError as `load_pretrained` does."""
        return cls(load_pretrained(folder, dtype=dtype).to(device).eval())

    def next_logits(self, step: DecodingStep) -> Tensor:
        """See `next_logits`."""
        with torch.no_grad():
            return next_logits(self._lm, step)

    def measure(self, tokens: Tensor, wanted: Tensor) -> Measured:
        """Losses of chosen targets, and whether these are the most likely tokens, without the logits of all tokens.

        Args:
            tokens: (B, L+1) int64, padded at the right; target i is token i+1.
            wanted: (B, L) bool, which targets to measure; n of them.

        Returns:
            (n,) each, in row order.
        """
        with torch.no_grad():
            # Without a mask: causal attention does not look at padding that follows.
            hidden = self._lm.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
            head = self._lm.lm_head
            scale, what = logit_scale(self._lm.config), Measure(is_greedy=True)
            return measure(hidden[wanted], head.weight, tokens[:, 1:][wanted], what, head.bias, scale)
