"""Causal attention within documents, as one operator of torch.

To a compiler the operator is one node, however many documents there are. A checkpoint policy that keeps its results,
(output, logsumexp), spares the recomputation of attention: the name is `megaslm::document_attention`.
"""

from typing import Any

import torch
from torch import Tensor, library

from megaslm.model.attention import cpu, flash

OPERATOR_NAME = "megaslm::document_attention"


@library.custom_op(OPERATOR_NAME, mutates_args=())
def document_attention(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, max_length: int, window: int | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of T tokens, each to those before it in its document and to itself.

    Args:
        query: (T, heads, head size).
        key: (T, key heads, head size); heads are a multiple of key heads, and consecutive ones share a key head.
        value: of the key's shape.
        bounds: (documents + 1,) int32, the first token of each document, then T. Documents may be empty.
        max_length: no document is longer.
        window: how many tokens a token attends to, itself included; None for all.
        scale: the factor of the products of queries and keys.

    Returns:
        (T, heads, head size) of the query's dtype, and (heads, T) float32 logarithms of the softmax's denominators
        (float64 if the query is). The second result has no gradient.
    """
    kernel = flash if query.is_cuda else cpu
    return kernel.forward(query, key, value, bounds, max_length, window, scale)


@document_attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, max_length: int, window: int | None, scale: float
) -> tuple[Tensor, Tensor]:
    tokens, heads, _ = query.shape
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    return query.new_empty(query.shape), query.new_empty((heads, tokens), dtype=dtype)


@library.custom_op(f"{OPERATOR_NAME}_backward", mutates_args=())
def document_attention_backward(
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
    """The gradients of query, key and value, from that of the output."""
    kernel = flash if query.is_cuda else cpu
    return kernel.backward(gradient, query, key, value, output, logsumexp, bounds, max_length, window, scale)


@document_attention_backward.register_fake
def _(
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
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, bounds, *settings = inputs
    ctx.settings = settings
    ctx.save_for_backward(query, key, value, *output, bounds)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = document_attention_backward(gradient, *ctx.saved_tensors, *ctx.settings)
    return *gradients, None, None, None, None


document_attention.register_autograd(_backward, setup_context=_keep)
