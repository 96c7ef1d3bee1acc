"""The softmax of a chunk of logits, kept as unnormalised exponentials: losses, norms and entropies of its rows.

A row's exponentials are exp(z - max z), its norm is their sum, and its loss is ln(norm) + max z - z of the target.
Leaving out the division by the norm saves a pass over the logits. A caller that needs probabilities scales the row.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from megaslm.slm.toolchain import lacking_for_gpu

Exponentials = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""The signature of `exponentials`."""


def exponentials(logits: Tensor, targets: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Writes exp(z - max z) of every row into `out` and returns the losses and the norms. No gradient flows.

    NaN and infinite logits are never clamped. Where a row holds NaN or +inf, or only -inf, its loss and norm are NaN
    and its exponentials are undefined. Where only the target's logit is -inf, the loss is +inf. Other rows are
    unaffected.

    Args:
        logits: (C, V) float32 or float64; scratch, overwritten unless the kernel runs.
        targets: (C,) int64, in [0, V).
        out: (C, V), `logits` itself or a separate tensor, of any floating dtype; rows are contiguous.

    Returns:
        Losses, -ln p(target) in nats, and norms, each (C,) in the dtype of `logits`. The norm sums the exponentials
        before `out` rounds them.

    Raises:
        RuntimeError: from torch, for a target outside [0, V); the kernel gives that row a NaN loss instead.
        ValueError: from the kernel, where rows are not contiguous.
    """
    fused = _fused() if logits.is_cuda and logits.dtype == torch.float32 else None
    return (fused or torch_exponentials)(logits, targets, out)


def torch_exponentials(logits: Tensor, targets: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """`exponentials` in torch alone, on any device. Allocates nothing of the size of `logits`.

    Args:
        logits: (C, V) float32 or float64; scratch, overwritten.
        targets: (C,) int64, in [0, V).
        out: (C, V), `logits` itself or a separate tensor, of any floating dtype.

    Returns:
        Losses and norms, each (C,) in the dtype of `logits`.

    Raises:
        RuntimeError: from torch, for a target outside [0, V).
    """
    target_shifts = _shift_by_maximum(logits, targets)
    norms = logits.exp_().sum(1)
    if out is not logits:
        out.copy_(logits)
    return norms.log() - target_shifts, norms


def exponentials_and_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Every row's loss and the entropy of its distribution, -Σ p ln p. No gradient flows.

    Args:
        logits: (C, V) float32 or float64; scratch, overwritten. One more tensor of this size is allocated.
        targets: (C,) int64, in [0, V).

    Returns:
        Losses and entropies in nats, each (C,) in the dtype of `logits`; NaN where a row holds NaN or +inf, or only
        -inf.

    Raises:
        RuntimeError: from torch, for a target outside [0, V).
    """
    target_shifts = _shift_by_maximum(logits, targets)
    weights = logits.exp()
    norms = weights.sum(1)
    log_norms = norms.log()
    # exp(-inf) · (-inf) would be NaN where p ln p tends to 0. A finite factor gives 0, and NaN passes the clamp.
    weights *= logits.clamp_(min=torch.finfo(logits.dtype).min)
    return log_norms - target_shifts, log_norms - weights.sum(1) / norms


def _shift_by_maximum(logits: Tensor, targets: Tensor) -> Tensor:
    """Subtracts each row's maximum in place. Returns z - max z of the targets, (C,)."""
    logits.sub_(logits.amax(1, keepdim=True))
    return logits.gather(1, targets[:, None]).squeeze(1)


@cache
def _fused() -> Exponentials | None:
    """The Triton kernel; None where Triton is not installed, or lacks a C compiler or headers to build its launcher."""
    if lacking_for_gpu() is not None:
        return None
    from megaslm.slm.triton_exponentials import fused_exponentials

    return fused_exponentials
