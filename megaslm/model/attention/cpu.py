"""Attention within documents on a CPU, by torch's flash attention for CPUs.

Long documents are computed one by one, without a copy of their tokens. Short ones are padded to a power of two and
computed together with all others of that size: padding at the end is invisible to causal attention. A document that is
longer than the layer's window is cut into blocks, so that the work grows with its length times the window.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, starmap
from typing import Protocol

import torch
from torch import Tensor

_LONGEST_PADDED_TOKENS = 64
_WINDOW_BLOCK_TOKENS = 128

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def forward(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, max_length: int, window: int | None, scale: float
) -> tuple[Tensor, Tensor]:
    """See `megaslm.model.attention.operator.document_attention`."""
    output = query.new_empty(query.shape)
    sums = query.new_empty((*query.shape[:2], 1), dtype=torch.promote_types(query.dtype, torch.float32))
    for part in _parts(tuple(bounds.tolist()), window, query.dtype):
        attended, sum_of_each = _flash(
            part.queries(query),
            part.keys(key),
            part.keys(value),
            0.0,
            part.mask is None,
            attn_mask=part.mask,
            scale=scale,
        )
        part.put_queries(output, attended)
        part.put_queries(sums, sum_of_each[..., None])
    return output, sums.squeeze(2).T.contiguous()


def backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    bounds: Tensor,
    max_length: int,
    window: int | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `megaslm.model.attention.operator.document_attention_backward`."""
    of_query = query.new_empty(query.shape)
    of_key, of_value = key.new_zeros(key.shape), value.new_zeros(value.shape)
    sums = logsumexp.T.contiguous()[..., None]
    for part in _parts(tuple(bounds.tolist()), window, query.dtype):
        parts_of_query, parts_of_key, parts_of_value = _flash_backward(
            part.gradients(gradient),
            part.queries(query),
            part.keys(key),
            part.keys(value),
            part.queries(output),
            part.queries(sums)[..., 0],
            0.0,
            part.mask is None,
            attn_mask=part.mask,
            scale=scale,
        )
        part.put_queries(of_query, parts_of_query)
        part.add_keys(of_key, parts_of_key)
        part.add_keys(of_value, parts_of_value)
    return of_query, of_key, of_value


class _Part(Protocol):
    """Queries that are computed in one call, and the keys that they see.

    Tensors of all tokens are (T, heads, size), those of a part (batch, heads, length, size).
    """

    @property
    def mask(self) -> Tensor | None:
        """Added to the products of queries and keys; None if attention is causal."""

    def queries(self, tokens: Tensor) -> Tensor: ...

    def gradients(self, tokens: Tensor) -> Tensor: ...

    def keys(self, tokens: Tensor) -> Tensor: ...

    def put_queries(self, tokens: Tensor, values: Tensor) -> None: ...

    def add_keys(self, tokens: Tensor, values: Tensor) -> None: ...


@dataclass(frozen=True)
class _Stretch:
    """The queries `start` to `stop`, which see the keys from `first_key` on."""

    start: int
    stop: int
    first_key: int
    mask: Tensor | None = None

    def queries(self, tokens: Tensor) -> Tensor:
        return tokens[self.start : self.stop].transpose(0, 1)[None]

    gradients = queries

    def keys(self, tokens: Tensor) -> Tensor:
        return tokens[self.first_key : self.stop].transpose(0, 1)[None]

    def put_queries(self, tokens: Tensor, values: Tensor) -> None:
        tokens[self.start : self.stop] = values[0].transpose(0, 1)

    def add_keys(self, tokens: Tensor, values: Tensor) -> None:
        tokens[self.first_key : self.stop] += values[0].transpose(0, 1)


class _Padded:
    """Documents that are padded at their ends to one length."""

    mask = None

    def __init__(self, length: int, documents: list[tuple[int, int]]) -> None:
        first, stop = torch.tensor(documents).T[..., None]
        place = first + torch.arange(length)
        # Padding repeats the document's own last token: another document's NaN must not reach it.
        self._tokens = place.minimum(stop - 1).flatten()
        self._is_padding = (place >= stop)[:, None, :, None]
        self._real = (place < stop).flatten().nonzero().squeeze(1)
        self._real_tokens = self._tokens[self._real]
        self._length = length

    def queries(self, tokens: Tensor) -> Tensor:
        return tokens.index_select(0, self._tokens).unflatten(0, (-1, self._length)).transpose(1, 2)

    keys = queries

    def gradients(self, tokens: Tensor) -> Tensor:
        return self.queries(tokens).masked_fill_(self._is_padding, 0.0)

    def put_queries(self, tokens: Tensor, values: Tensor) -> None:
        flat = values.transpose(1, 2).flatten(0, 1)
        tokens.index_copy_(0, self._real_tokens, flat.index_select(0, self._real))

    # No other part has the keys of these documents.
    add_keys = put_queries


@lru_cache(maxsize=8)
def _parts(bounds: tuple[int, ...], window: int | None, dtype: torch.dtype) -> tuple[_Part, ...]:
    """The parts of a micro-batch, made once for all its layers of one window."""
    parts: list[_Part] = []
    short: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    # A first call may come in inference mode, and later ones in training.
    with torch.inference_mode(mode=False):
        for start, stop in pairwise(bounds):
            length = stop - start
            if window is not None and length > window:
                parts += _blocks(start, stop, window, dtype)
            elif length > _LONGEST_PADDED_TOKENS:
                parts.append(_Stretch(start, stop, first_key=start))
            elif length:
                short[1 << (length - 1).bit_length()].append((start, stop))
        parts += starmap(_Padded, short.items())
    return tuple(parts)


def _blocks(start: int, stop: int, window: int, dtype: torch.dtype) -> Iterator[_Stretch]:
    """The blocks of a document that is longer than the window. The first is as long as the window."""
    yield _Stretch(start, start + window, first_key=start)
    mask = _band(window, dtype)
    for first in range(start + window, stop, _WINDOW_BLOCK_TOKENS):
        end = min(first + _WINDOW_BLOCK_TOKENS, stop)
        first_key = first - window + 1
        yield _Stretch(first, end, first_key, mask[: end - first, : end - first_key])


@lru_cache(maxsize=8)
def _band(window: int, dtype: torch.dtype) -> Tensor:
    """The mask of a block whose keys begin `window - 1` tokens before it, (block, block + window - 1)."""
    hidden = torch.full((_WINDOW_BLOCK_TOKENS, _WINDOW_BLOCK_TOKENS + window - 1), float("-inf"), dtype=dtype)
    return hidden.tril(-1) + hidden.triu(window)
