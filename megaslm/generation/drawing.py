"""The next token of each row.

What is drawn for a row depends on its seed, the position in its text, and its logits alone. Other rows of the batch,
the number of ranks and the device do not matter. The draw takes the largest of logit + noise, with Gumbel noise of its
own for every token of the vocabulary (the Gumbel-max trick). So logits that differ in their last bits, as those of
different batch sizes do, change a token only where two sums are nearly equal. A draw by the cumulative distribution
would pass on the rounding of every earlier token.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from megaslm.generation.sampling import Sampling

NOT_A_NUMBER = -1
"""In place of a token: the row's logits hold NaN."""
_TOKEN, _POSITION = -1640531535, -2048144777
"""Odd multipliers, 0x9E3779B1 and 0x85EBCA77 as int32, that spread consecutive numbers over all bits."""


def choose(logits: Tensor, sampling: Sampling, seeds: Tensor, positions: Tensor) -> Tensor:
    """The next tokens.

    Args:
        logits: (B, V) float32.
        sampling: greedy, or temperature and top_p.
        seeds: (B, 2) int32, see `row_seeds`.
        positions: (B,) int64, the places of the new tokens in their texts.

    Returns:
        (B,) int64; `NOT_A_NUMBER` where logits hold NaN.
    """
    if not sampling.is_greedy:
        logits = logits / sampling.temperature
        if sampling.top_p < 1.0:
            logits = _nucleus(logits, sampling.top_p)
        logits = logits + gumbel(seeds, positions, logits.shape[1])
    largest, tokens = logits.max(dim=1)
    return tokens.where(~largest.isnan(), NOT_A_NUMBER)


def row_seeds(seeds: Sequence[int], device: torch.device) -> Tensor:
    """64-bit seeds as (B, 2) int32."""
    halves = [[_int32(seed >> 32), _int32(seed & 0xFFFFFFFF)] for seed in seeds]
    return torch.tensor(halves, dtype=torch.int32, device=device).view(-1, 2)


def gumbel(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """Noise of the standard Gumbel distribution, a function of (seed, position, token).

    Args:
        seeds: (B, 2) int32.
        positions: (B,) int64.
        vocab_size: V.

    Returns:
        (B, V) float32.
    """
    tokens = torch.arange(vocab_size, dtype=torch.int32, device=seeds.device) * _TOKEN
    at_position = _mix(_mix(positions.to(torch.int32) * _POSITION ^ seeds[:, 1]) ^ seeds[:, 0])
    bits = _mix(_mix(tokens[None] ^ seeds[:, :1]) ^ at_position[:, None])
    # In (0, 1] and fine near 0, because the noise is large where the exponential variate -ln(1 - u) is small.
    uniform = ((bits & 0x7FFFFFFF).to(torch.float32) + 0.5) * 2.0**-31
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _mix(bits: Tensor) -> Tensor:
    """The finaliser of MurmurHash3 (Appleby, public domain) on int32, whose products wrap around."""
    bits = (bits ^ (bits >> 16 & 0xFFFF)) * _int32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13 & 0x7FFFF)) * _int32(0xC2B2AE35)
    return bits ^ (bits >> 16 & 0xFFFF)


def _int32(bits: int) -> int:
    return bits - (1 << 32) if bits >= 1 << 31 else bits


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """(B, V) logits, -inf outside of the fewest most likely tokens whose probabilities reach `top_p`."""
    ordered, tokens = logits.sort(dim=1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=1)
    before = probabilities.cumsum(dim=1) - probabilities
    return torch.empty_like(logits).scatter_(1, tokens, ordered.masked_fill(before >= top_p, float("-inf")))
