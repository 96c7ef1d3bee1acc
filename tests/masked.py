"""The definition of attention within documents: an explicit mask over all pairs of tokens."""

import torch
from torch import Tensor
from torch.nn import functional as F


def visible(bounds: Tensor, window: int | None) -> Tensor:
    """(T, T) bool: whether token i attends to token j."""
    tokens = int(bounds[-1])
    place = torch.arange(tokens)
    document = torch.searchsorted(bounds[1:], place, right=True)
    distance = place[:, None] - place[None, :]
    seen = (document[:, None] == document[None, :]) & (distance >= 0)
    return seen if window is None else seen & (distance < window)


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, max_length: int, window: int | None, scale: float
) -> tuple[Tensor, Tensor]:
    """What `document_attention` is to give, differentiable in both results."""
    query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
    key, value = (tensor.repeat_interleave(len(query) // len(key), dim=0) for tensor in (key, value))
    seen = visible(bounds, window)
    sums = (query @ key.mT * scale).masked_fill(~seen, float("-inf")).logsumexp(-1)
    hidden = torch.zeros(seen.shape, dtype=query.dtype).masked_fill_(~seen, float("-inf"))
    output = F.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=hidden[None], scale=scale)
    return output[0].transpose(0, 1), sums
