"""The arithmetic of the head over a chunk of rows: logits, exponentials, and their contribution to the gradients.

With z the logits of a row, E = exp(z − max z) and s = ΣE, the gradient of its loss by z is E/s, minus one at the
target. The two matrix products run on E itself, and 1/s multiplies their narrow side. The target's entry is first
replaced by s·expm1(−loss), which is (p − 1)·s, exact to float32 also where E is kept in bf16.

On a CPU, losses without a gradient are computed in blocks of the vocabulary. A block of logits stays in the processor's
cache from the product to the sum of its exponentials, and its part of the weight is brought into the product's order
once for many rows. A GPU has a kernel over whole rows.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from megaslm.slm.exponentials import exponentials

_LOGIT_BYTES_ON_GPU = 512 << 20
_LOGIT_BYTES_ON_CPU = 32 << 20
_FEWEST_ROWS_ON_GPU = 2048
_ROWS = 1024
_COLUMNS = 1024


class Softmax(NamedTuple):
    """The softmax of n rows before its division by the norms.

    `exponentials`: (n, V), exp(z − max z). `losses`, `norms`: (n,) float32; norms are the sums of the exponentials.
    `entropies`: (n,) float32 in nats, where they were asked for.
    """

    exponentials: Tensor
    losses: Tensor
    norms: Tensor
    entropies: Tensor | None = None


Note = Callable[[Tensor, Softmax], None]
"""Takes rows, (n,) int64, and their softmax."""


class SoftRows(NamedTuple):
    """What the gradient of n rows is made of besides their own targets, see `megaslm.slm.distillation`.

    `hard`, `soft`: (n,), the shares of the cross-entropy and of the divergence. `ids`: (n, K) int64, distinct in a row.
    `at_top`: (n, K), the derivative of the divergence by the logits of these ids. `of_rest`: (n,), that by another
    logit, divided by the token's probability.
    """

    hard: Tensor
    soft: Tensor
    ids: Tensor
    at_top: Tensor
    of_rest: Tensor


def chunk_count(rows: int, vocab_size: int, dtype: torch.dtype, *, on_gpu: bool) -> int:
    """Into how many chunks rows are divided, so that a chunk's logits of `dtype` fit into memory."""
    row_bytes = vocab_size * dtype.itemsize
    if on_gpu:
        most_rows = max(_FEWEST_ROWS_ON_GPU, _LOGIT_BYTES_ON_GPU // row_bytes)
    else:
        most_rows = max(1, _LOGIT_BYTES_ON_CPU // row_bytes)
    return max(1, -(-rows // most_rows))


class HeadPass:
    """One call's inputs, in the dtype in which they are multiplied.

    bf16 stays bf16 on a GPU, whose products are float32. A CPU multiplies float32. float64 stays float64.
    """

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, logit_scale: float
    ) -> None:
        """Takes (T, D) hidden states, the (V, D) weight, the (V,) bias and (T,) int64 targets."""
        self.targets = targets
        self.logit_scale = logit_scale
        self.loss_dtype = torch.promote_types(hidden.dtype, torch.float32)
        dtype = hidden.dtype if hidden.is_cuda else self.loss_dtype
        self.hidden = hidden.to(dtype)
        self.weight = weight.to(dtype)
        self.bias = None if bias is None else bias.to(self.loss_dtype)
        self._logits = torch.empty(0, dtype=self.loss_dtype, device=hidden.device)

    def chunks(self) -> list[Tensor]:
        """All rows in chunks, (n,) int64 each. Each of c chunks takes every c-th row, which makes it a fair sample."""
        total = len(self.targets)
        count = chunk_count(total, self.weight.shape[0], self.loss_dtype, on_gpu=self.hidden.is_cuda)
        return [torch.arange(start, total, count, device=self.hidden.device) for start in range(count)]

    def chunks_of(self, rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The given rows in chunks sized so that (n, V) elements of `dtype` fit into memory."""
        return rows.tensor_split(chunk_count(len(rows), self.weight.shape[0], dtype, on_gpu=self.hidden.is_cuda))

    def softmax(
        self, rows: Tensor, out: Tensor | None = None, *, entropies: bool = False, note: Note | None = None
    ) -> Softmax:
        """The softmax of the given rows. Its exponentials are in `out`, or in a buffer of the next call too.

        `note` is called with the rows and their softmax before `out` rounds the exponentials.
        """
        logits = self.logits(rows)
        if out is None:
            out = logits if self.hidden.dtype == logits.dtype else torch.empty_like(logits, dtype=self.hidden.dtype)
        if not entropies and note is None:
            return Softmax(out, *exponentials(logits, self.targets[rows], out))
        losses, norms = exponentials(logits, self.targets[rows], logits)
        whole = Softmax(logits, losses, norms, _entropies(logits, norms) if entropies else None)
        if note is not None:
            note(rows, whole)
        return whole if out is logits else whole._replace(exponentials=out.copy_(logits))

    def logits(self, rows: Tensor | slice, columns: slice = slice(None)) -> Tensor:
        """(n, V) float32 logits, or only the given columns. The next call may overwrite them."""
        hidden, weight = self.hidden[rows], self.weight[columns]
        if hidden.dtype == self.loss_dtype:
            size = len(hidden) * len(weight)
            if self._logits.numel() < size:
                self._logits = self._logits.new_empty(size)
            logits = torch.mm(hidden, weight.t(), out=self._logits[:size].view(len(hidden), len(weight)))
        else:
            logits = _product(hidden, weight.t())
        if self.bias is not None:
            logits += self.bias[columns]
        if self.logit_scale != 1.0:
            logits *= self.logit_scale
        return logits


class HeadGradient:
    """The gradient of a weighted sum of losses, collected chunk by chunk, in float32."""

    def __init__(self, head: HeadPass, *, of_hidden: bool, of_weight: bool) -> None:
        """Starts at zero. Gradients that are not asked for are not computed."""
        self._head = head
        self.hidden = torch.zeros_like(head.hidden, dtype=head.loss_dtype) if of_hidden else None
        self.weight = torch.zeros_like(head.weight, dtype=head.loss_dtype) if of_weight else None
        self.bias = torch.zeros_like(head.bias) if of_weight and head.bias is not None else None

    def add(
        self,
        rows: Tensor,
        softmax: Softmax,
        row_weight: Tensor,
        soft: SoftRows | None = None,
        keep: Tensor | None = None,
    ) -> None:
        """Adds the gradient of Σ row_weight·loss over the given rows. Overwrites the exponentials.

        Args:
            rows: (n,) int64, without repetition.
            softmax: of these rows.
            row_weight: (n,) float32; a negative weight removes an earlier contribution.
            soft: mixes the losses of these rows with divergences; None: they are cross-entropies.
            keep: (n,) bool, rows whose hidden-state gradient is kept; None keeps all.
        """
        head = self._head
        # The derivative of each loss by the matrix product, times norm / scale, takes the place of the exponentials.
        derivative = softmax.exponentials.to(head.hidden.dtype)
        targets, at_target = head.targets[rows][:, None], softmax.norms * torch.expm1(-softmax.losses)
        if soft is not None:
            at_target = _soften(derivative, softmax, targets, at_target, soft)
        derivative.scatter_(1, targets, at_target[:, None].to(derivative.dtype))
        coefficient = (row_weight.to(head.loss_dtype) * head.logit_scale / softmax.norms)[:, None]
        if self.hidden is not None:
            by_hidden = _product(derivative, head.weight) * coefficient
            if keep is not None:
                by_hidden = by_hidden.where(keep[:, None], 0.0)
            self.hidden[rows] = by_hidden
        if self.weight is not None:
            scaled = (head.hidden[rows] * coefficient).to(head.hidden.dtype)
            _accumulate_product(self.weight, derivative.t(), scaled)
        if self.bias is not None:
            self.bias += (derivative.to(self.bias.dtype) * coefficient).sum(0)


def _soften(derivative: Tensor, softmax: Softmax, targets: Tensor, at_target: Tensor, soft: SoftRows) -> Tensor:
    """Adds the divergences to the (n, V) derivatives of cross-entropies, both times norm, and returns the entries of
    the (n, 1) targets, (n,): `at_target` are those of the cross-entropies."""
    hard, share = soft.hard[:, None], (soft.soft * softmax.norms)[:, None]
    is_target = soft.ids == targets
    of_rest = soft.of_rest * torch.exp(-softmax.losses)
    divergence = (soft.at_top * is_target).sum(1).where(is_target.any(1), of_rest)
    top = derivative.gather(1, soft.ids) * hard + soft.at_top * share
    derivative *= (soft.hard + soft.soft * soft.of_rest)[:, None]
    derivative.scatter_(1, soft.ids, top.to(derivative.dtype))
    return soft.hard * at_target + share.squeeze(1) * divergence


def _entropies(exponentials: Tensor, norms: Tensor) -> Tensor:
    """-Σ p ln p of the rows of a softmax, in nats: (n,) of (n, V) and (n,). With p = E/s it is ln s - ΣE ln E / s."""
    total = torch.zeros_like(norms)
    for columns in exponentials.split(_COLUMNS, dim=1):
        total += torch.special.entr(columns).sum(1)
    return norms.log() + total / norms


def _accumulate_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in at least float32."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in at least float32. Rounding bf16 products to bf16 would change an eighth of the selected set."""
    if left.dtype == torch.promote_types(left.dtype, torch.float32):
        return left @ right
    return torch.mm(left, right, out_dtype=torch.float32)


def losses_alone(head: HeadPass) -> Tensor:
    """-ln p(target) of every row in nats, (T,) float32. No gradient flows.

    NaN where a row's logits hold NaN or +inf, or only -inf, or its target lies outside of the vocabulary.
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
    """The losses of rows whose logits arrive in blocks of columns, each column once."""

    def __init__(self, targets: Tensor, dtype: torch.dtype) -> None:
        """Takes (n,) int64 targets and the dtype of the logits."""
        self._targets = targets
        self._maximum = torch.full(targets.shape, float("-inf"), dtype=dtype, device=targets.device)
        # The sum of exp(z - maximum) over the columns so far.
        self._norm = torch.zeros_like(self._maximum)
        self._target_logit = torch.full_like(self._maximum, float("nan"))

    def add(self, logits: Tensor, first: int) -> None:
        """Adds (n, m) logits of the columns from `first` on. Overwrites them."""
        place = self._targets - first
        inside = (place >= 0) & (place < logits.shape[1])
        found = logits.gather(1, place.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
        self._target_logit = found.where(inside, self._target_logit)

        maximum = torch.maximum(self._maximum, logits.amax(1))
        # While there is only -inf, a finite shift gives exponentials of 0; -inf would give NaN.
        shift = maximum.where(maximum != float("-inf"), 0.0)
        self._norm *= (self._maximum - shift).exp_()
        self._norm += logits.sub_(shift[:, None]).exp_().sum(1)
        self._maximum = maximum

    def losses(self) -> Tensor:
        """(n,), after every column was added."""
        return (self._norm.log() + (self._maximum - self._target_logit)).where(self._norm > 0, float("nan"))
