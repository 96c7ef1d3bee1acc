"""The head: per-token losses and the sum of the selected ones, without ever holding the T×V logits.

Both the scoring job and the trainer call this file and nothing else for a token's loss. Forward goes over chunks of
rows and keeps only the float32 log-normaliser of each row; backward recomputes the logits of selected rows alone.
In units of T·D·V multiply-adds that is 2 for the forward and 6k for the backward.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Select = Callable[[Tensor], Tensor]
"""Takes all losses, (T,) float32 and detached, and marks the selected ones, (T,) bool. Called once, under no_grad."""

_LOGIT_BYTES_ON_GPU = 512 << 20
_LOGIT_BYTES_ON_CPU = 16 << 20


def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None) -> Tensor:
    """-ln p(target) of every row, in nats (Rho-1, equation 2). No gradient flows.

    Args:
        hidden: (T, D) float32 or bfloat16.
        weight: (V, D), the head's matrix, of the same dtype.
        targets: (T,) int64.
        bias: (V,) or None.

    Returns:
        (T,) float32.
    """
    with torch.no_grad():
        return _losses_and_log_norms(hidden, weight, bias, targets)[0]


def selective_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    row_weight: Tensor,
    select: Select,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The weighted sum of the selected losses, and all losses (the numerator of Rho-1's equation 4).

    Args:
        hidden: (T, D) float32 or bfloat16.
        weight: (V, D), the head's matrix, of the same dtype.
        targets: (T,) int64.
        row_weight: (T,) float32; no gradient flows to it.
        select: which rows count; see `Select`.
        bias: (V,) or None.

    Returns:
        A float32 scalar, differentiable in hidden, weight and bias, and the losses, (T,) float32, detached.
    """
    total, losses = _SelectiveLoss.apply(hidden, weight, bias, targets, row_weight, select)
    return total, losses


class _SelectiveLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        row_weight: Tensor,
        select: Select,
    ) -> tuple[Tensor, Tensor]:
        losses, log_norms = _losses_and_log_norms(hidden, weight, bias, targets)
        # The only read by the host: how many rows the backward pass has to visit.
        rows = select(losses).nonzero().squeeze(1)
        ctx.save_for_backward(hidden, weight, bias, targets, row_weight, log_norms, rows)
        ctx.mark_non_differentiable(losses)
        return (losses[rows] * row_weight[rows]).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_total: Tensor, _grad_losses: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, None, None, None]:
        hidden, weight, bias, targets, row_weight, log_norms, rows = ctx.saved_tensors
        grad_hidden = torch.zeros_like(hidden)
        accumulation = _accumulation_dtype(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=accumulation, device=weight.device)
        grad_bias = None if bias is None else torch.zeros(bias.shape, dtype=accumulation, device=bias.device)
        for chunk in rows.split(_chunk_rows(weight)):
            hidden_chunk = hidden[chunk]
            grad_logits = _logits(hidden_chunk, weight, bias).sub_(log_norms[chunk, None]).exp_()
            grad_logits[torch.arange(len(chunk), device=chunk.device), targets[chunk]] -= 1.0
            grad_logits *= (row_weight[chunk] * grad_total)[:, None]
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            grad_logits = grad_logits.to(hidden.dtype)
            grad_hidden[chunk] = _product(grad_logits, weight).to(hidden.dtype)
            _accumulate_product(grad_weight, grad_logits.t(), hidden_chunk)
        return (
            grad_hidden,
            grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _losses_and_log_norms(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> tuple[Tensor, Tensor]:
    losses = torch.empty(targets.shape, dtype=_accumulation_dtype(hidden), device=hidden.device)
    log_norms = torch.empty_like(losses)
    rows_at_once = _chunk_rows(weight)
    for start in range(0, len(targets), rows_at_once):
        chunk = slice(start, start + rows_at_once)
        logits = _logits(hidden[chunk], weight, bias)
        log_norms[chunk] = torch.logsumexp(logits, dim=1)
        losses[chunk] = log_norms[chunk] - logits.gather(1, targets[chunk, None]).squeeze(1)
    return losses, log_norms


def _accumulation_dtype(hidden: Tensor) -> torch.dtype:
    """float32, and float64 where the input is float64: what losses and weight gradients are kept in."""
    return torch.promote_types(hidden.dtype, torch.float32)


def _chunk_rows(weight: Tensor) -> int:
    budget = _LOGIT_BYTES_ON_GPU if weight.is_cuda else _LOGIT_BYTES_ON_CPU
    return max(1, budget // (4 * weight.shape[0]))


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = _product(hidden, weight.t())
    return logits if bias is None else logits.add_(bias)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in at least float32: bf16 products rounded to bf16 would move an eighth of the selected set."""
    if left.dtype == _accumulation_dtype(left):
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def _accumulate_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += _product(left, right)
