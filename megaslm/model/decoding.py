"""Forward passes that continue texts: transformers' own attention, with a cache and padding at the left.

The attention within documents serves packed rows. It knows neither, so it is switched off here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import DynamicCache

from megaslm.model.fit import longest_steady_row

_ATTENTION = "sdpa"


class Cache:
    """The keys and values of the tokens that a model has read, of every layer and row."""

    def __init__(self) -> None:
        self.of_library: DynamicCache | None = None
        """Made at the first forward pass."""

    def keep_rows(self, rows: Tensor) -> None:
        """Keeps the (n,) int64 rows, in this order, and drops the others."""
        if self.of_library is not None:
            self.of_library.batch_select_indices(rows)


@dataclass(frozen=True)
class DecodingStep:
    """Tokens that a model reads after those in the cache."""

    ids: Tensor
    """(B, L) int64."""
    is_token: Tensor
    """(B, P+L) bool, of the P cached tokens too: false for padding."""
    positions: Tensor
    """(B, L) int64, counted from the first token of each row."""
    cache: Cache
    """Of P tokens; afterwards of P+L."""


def next_logits(lm: Any, step: DecodingStep) -> Tensor:
    """(B, V) float32 logits of the tokens that follow each row.

    `lm` is a transformers model for causal language modeling, in `decoding_attention` or loaded with it.
    """
    if step.cache.of_library is None:
        # With the configuration, layers with a sliding window keep no more than the window.
        step.cache.of_library = DynamicCache(config=lm.config)
    output = lm(
        input_ids=step.ids,
        attention_mask=step.is_token,
        position_ids=step.positions,
        past_key_values=step.cache.of_library,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1].float()


@contextmanager
def decoding_attention(lm: Any) -> Iterator[None]:
    """Within the context the model has transformers' attention, which reads a cache and a mask of padding."""
    before = lm.config._attn_implementation
    lm.set_attn_implementation(_ATTENTION)
    try:
        yield
    finally:
        lm.set_attn_implementation(before)


def context_tokens(lm: Any) -> int:
    """The most tokens of a text, prompt and continuation, that the model was built for.

    Under `longrope` no more than those whose angles do not depend on the other rows of a batch.
    """
    return min(lm.config.max_position_embeddings, longest_steady_row(lm.config) or lm.config.max_position_embeddings)
