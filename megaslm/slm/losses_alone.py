"""Losses that no gradient follows: on a CPU the vocabulary comes in blocks, and of their exponentials nothing is kept.

A block of logits stays in the processor's cache from the product to the sum of its exponentials, and its part of the
weight is brought into the product's order once for many rows. A GPU has its own kernel over whole rows.
"""

import torch
from torch import Tensor

from megaslm.slm.head_pass import HeadPass

_ROWS = 1024
_COLUMNS = 1024


def losses_alone(head: HeadPass) -> Tensor:
    """-ln p(target) of every row in nats, (T,) float32. No gradient flows.

    NaN where a row's logits hold NaN or +inf, or nothing but -inf, or its target lies outside of the vocabulary.
    """
    losses = torch.empty(head.targets.shape, dtype=head.loss_dtype, device=head.hidden.device)
    if head.hidden.is_cuda:
        for chunk in head.chunks():
            losses[chunk] = head.softmax(chunk).losses
        return losses
    for start in range(0, len(losses), _ROWS):
        rows = slice(start, start + _ROWS)
        running = RunningLosses(head.targets[rows], head.loss_dtype)
        for first in range(0, head.weight.shape[0], _COLUMNS):
            running.add(head.logits(rows, slice(first, first + _COLUMNS)), first)
        losses[rows] = running.losses()
    return losses


class RunningLosses:
    """The losses of rows whose logits come in blocks of columns, each column once."""

    def __init__(self, targets: Tensor, dtype: torch.dtype) -> None:
        """Takes (n,) int64 targets; `dtype` is that of the logits."""
        self._targets = targets
        self._maximum = torch.full(targets.shape, float("-inf"), dtype=dtype, device=targets.device)
        # The sum of exp(z - maximum) over the columns so far.
        self._norm = torch.zeros_like(self._maximum)
        self._target_logit = torch.full_like(self._maximum, float("nan"))

    def add(self, logits: Tensor, first: int) -> None:
        """Takes (n, m) logits of the columns from `first` on, which are overwritten."""
        place = self._targets - first
        inside = (place >= 0) & (place < logits.shape[1])
        found = logits.gather(1, place.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
        self._target_logit = found.where(inside, self._target_logit)

        maximum = torch.maximum(self._maximum, logits.amax(1))
        # As long as there is nothing but -inf, any finite shift gives exponentials of 0, where -inf would give NaN.
        shift = maximum.where(maximum != float("-inf"), 0.0)
        self._norm *= (self._maximum - shift).exp_()
        self._norm += logits.sub_(shift[:, None]).exp_().sum(1)
        self._maximum = maximum

    def losses(self) -> Tensor:
        """(n,), once every column was added."""
        return (self._norm.log() + (self._maximum - self._target_logit)).where(self._norm > 0, float("nan"))
