"""The head: per-token losses and the sum of the selected ones, without ever holding the T×V logits.

The scoring job and the trainer both compute a token's loss in this file only. Gradients are computed in the forward
pass, where the logits are, and multiplied by the incoming scalar in the backward pass. So only the forward pass reads
the weight.

The cost in units of T·D·V floating-point operations, with k the share of selected rows: 6 for every row; 6k for known
rows, and 2(1-k) for the losses of the others. A choice that depends on the losses costs, by `HeadMethod`:

- `recompute`: 2 + 6k. The logits of selected rows are computed again.
- `cache`: 2 + 4k. The exponentials of all rows are kept, in bf16, until the choice is made.
- `bracket`: 2 + 4k where the forecast is right. Rows surely above the threshold get their gradient at once. Selected
  rows that were missed are computed again, and wrong guesses are removed. The result is exact; no T×V memory.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megaslm.errors import NonFiniteCriterion
from megaslm.slm.choice import ByLoss, Deferred, Forecast, HeadOutput, Known, Selected, Weights, no_threshold
from megaslm.slm.distillation import Distilled
from megaslm.slm.head_pass import HeadGradient, HeadPass, Note, Softmax, SoftRows
from megaslm.slm.measure import Measure, measure

HeadMethod = Literal["cache", "bracket", "recompute"]

_CACHE_DTYPE = torch.bfloat16


def cache_bytes(rows: int, vocab_size: int) -> int:
    """Size of the exponentials that `cache` holds between the choice and the gradient: 2·T·V bytes."""
    return rows * vocab_size * _CACHE_DTYPE.itemsize


def weighted_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    row_weight: Tensor,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    *,
    further: Weights | None = None,
    numbers: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The weighted sum of all losses, for rows that are known to be valid: 6·T·D·V operations, no T×V memory.

    Args:
        hidden: (T, D) float32 or bfloat16.
        weight: (V, D), the head's matrix, of the same dtype.
        targets: (T,) int64.
        row_weight: (T,) float32, 0 where a row is not selected; no gradient flows to it. A row of weight 0 adds
            nothing, unless its hidden state is non-finite.
        bias: (V,) or None.
        logit_scale: factor of the logits.
        further: weights that follow from the logits, as further factors.
        numbers: (T,) int64, the numbers of the rows for `further`; None where they are 0 to T - 1.

    Returns:
        A float32 scalar, differentiable once in hidden, weight and bias; the losses, (T,) float32, detached; and with
        `further` the products, (T,) float32.
    """
    rows = RowWeights(row_weight, further, numbers)
    total, losses, _, _, applied = _HeadLoss.apply(hidden, weight, bias, targets, rows, None, "recompute", logit_scale)
    return total, losses, applied


def selective_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    row_weight: Tensor,
    select: ByLoss,
    bias: Tensor | None = None,
    *,
    method: HeadMethod = "bracket",
    logit_scale: float = 1.0,
) -> HeadOutput:
    """The weighted sum of the selected losses (the numerator of Rho-1's equation 4), all losses, and the selection.

    The host reads the device once, after the choice.

    Args:
        hidden: (T, D) float32 or bfloat16.
        weight: (V, D), the head's matrix, of the same dtype.
        targets: (T,) int64.
        row_weight: (T,) float32; no gradient flows to it.
        select: chooses the rows. Its weights are further factors.
        bias: (V,) or None.
        method: how the gradient is computed. The result is the same, with `cache` up to the rounding of bf16.
        logit_scale: factor of the logits.

    Returns:
        The head's output; its total is differentiable once in hidden, weight and bias.

    Raises:
        NonFiniteCriterion: a row cannot be sorted.
    """
    rows = RowWeights(row_weight, select.weights)
    return HeadOutput(*_HeadLoss.apply(hidden, weight, bias, targets, rows, select, method, logit_scale))


def deferred_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    deferred: Deferred,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """All losses now, and the gradient of the selected ones' sum in the backward pass: 2 and 6k·T·D·V operations.

    Args:
        hidden: (T, D) float32 or bfloat16.
        weight: (V, D), the head's matrix, of the same dtype. The backward pass reads it again.
        targets: (T,) int64.
        deferred: holds the selected rows when the backward pass begins.
        bias: (V,) or None.
        logit_scale: factor of the logits.

    Returns:
        A scalar of value 0 with the gradient of the selected losses' sum, differentiable once in hidden, weight and
        bias; and the losses, (T,) float32, detached.
    """
    return _DeferredHeadLoss.apply(hidden, weight, bias, targets, deferred, logit_scale)


class RowWeights:
    """The weights of a call's rows: their own factors, and further ones that become known chunk by chunk.

    `note`: takes the unrounded softmax of a chunk, before its exponentials are used up; None where nothing reads it.
    `trains_others`: whether rows that are not selected have weights.
    """

    def __init__(self, own: Tensor, further: Weights | None = None, numbers: Tensor | None = None) -> None:
        """Takes the (T,) factors; the further ones, if any; and the numbers by which these know the rows."""
        self.own = own
        self.note: Note | None = None if further is None else self._note
        self.trains_others = further is not None and further.trains_others
        self._further, self._numbers = further, numbers
        self._selected = own if further is None else torch.zeros_like(own)
        self._others = torch.zeros_like(own) if self.trains_others else own.new_zeros(())
        teacher = None if further is None else further.teacher
        self._distilled = None if teacher is None else Distilled(teacher, own)

    def _note(self, rows: Tensor, softmax: Softmax) -> None:
        assert self._further is not None
        numbers = rows if self._numbers is None else self._numbers[rows]
        if self._distilled is not None:
            self._distilled.note(rows, numbers, softmax)
        self._selected[rows] = self.own[rows] * self._further.of_selected(numbers, softmax).to(self.own.dtype)
        if self.trains_others:
            self._others[rows] = self._further.of_others(numbers, softmax).to(self.own.dtype)

    def of(self, rows: Tensor, selected: Tensor) -> tuple[Tensor, SoftRows | None]:
        """The weights of (n,) rows under their part of a selection, (n,) bool; and what their gradient is made of
        besides their targets."""
        others = self._others[rows] if self.trains_others else self._others
        weights = self._selected[rows].where(selected, others)
        return weights, None if self._distilled is None else self._distilled.rows(selected, rows)

    def trained(self, mask: Tensor) -> Tensor:
        """(T,) bool: the rows that have a gradient under a selection."""
        return mask | (self._others != 0) if self.trains_others else mask

    def total(self, losses: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """The weighted sum of all rows' losses under a selection, a scalar of (T,) cross-entropies and (T,) bool; and
        the weights, (T,), where there are further factors."""
        weights = self._selected.where(mask, self._others)
        if self._distilled is not None:
            losses = self._distilled.mixed(losses, mask)
        return (losses * weights).where(self.trained(mask), 0.0).sum(), None if self._further is None else weights


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: RowWeights,
        select: ByLoss | None,
        method: HeadMethod,
        logit_scale: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        head = HeadPass(hidden, weight, bias, targets, logit_scale)
        of_hidden, of_weight = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:3])
        gradient = HeadGradient(head, of_hidden=of_hidden, of_weight=of_weight)
        if select is None:
            mask, threshold = weights.own != 0, no_threshold(hidden.device)
            losses = _add_every_row(head, gradient, weights, mask)
        elif method == "cache":
            losses, mask, threshold = _add_from_cache(head, gradient, weights, select)
        else:
            # A forecast is of the rows above a threshold. Where others are trained on, it would spare nothing.
            forecast = select.forecast if method == "bracket" and not weights.trains_others else None
            losses, mask, threshold = _add_around_threshold(head, gradient, weights, select, forecast)
        ctx.save_for_backward(gradient.hidden, gradient.weight, gradient.bias)
        ctx.hidden_dtype, ctx.weight_dtype = hidden.dtype, weight.dtype
        total, applied = weights.total(losses, mask)
        ctx.mark_non_differentiable(losses, mask, threshold, *(() if applied is None else (applied,)))
        return total, losses, mask, threshold, applied

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_total: Tensor, *_others: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None, None, None]:
        hidden, weight, bias = ctx.saved_tensors
        by_hidden = _scaled(hidden, grad_total, ctx.hidden_dtype)
        by_weight = _scaled(weight, grad_total, ctx.weight_dtype)
        by_bias = _scaled(bias, grad_total, ctx.weight_dtype)
        return by_hidden, by_weight, by_bias, None, None, None, None, None


class _DeferredHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        deferred: Deferred,
        logit_scale: float,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.deferred, ctx.logit_scale = deferred, logit_scale
        what = Measure(entropies=deferred.by_entropy)
        losses, deferred.entropies, *_ = measure(hidden, weight, targets, what, bias, logit_scale)
        ctx.mark_non_differentiable(losses)
        return losses.new_zeros(()), losses

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_total: Tensor, _losses: None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        hidden, weight, bias, targets = ctx.saved_tensors
        known: Known | None = ctx.deferred.known
        assert known is not None, "the rows are decided before the backward pass"
        rows = known.rows
        if known.weights is not None and known.weights.trains_others:
            rows = torch.arange(len(targets), device=targets.device)
        mask = known.mask[rows]
        head = HeadPass(hidden.index_select(0, rows), weight, bias, targets[rows], ctx.logit_scale)
        gradient = HeadGradient(head, of_hidden=ctx.needs_input_grad[0], of_weight=any(ctx.needs_input_grad[1:3]))
        row_weights = RowWeights(mask.float(), known.weights, rows)
        losses = _add_every_row(head, gradient, row_weights, mask)
        if ctx.deferred.applied is not None:
            _, ctx.deferred.applied[rows] = row_weights.total(losses, mask)
        chosen = _scaled(gradient.hidden, grad_total, hidden.dtype)
        by_hidden = None if chosen is None else torch.zeros_like(hidden).index_copy_(0, rows, chosen)
        by_weight = _scaled(gradient.weight, grad_total, weight.dtype)
        by_bias = _scaled(gradient.bias, grad_total, weight.dtype)
        return by_hidden, by_weight, by_bias, None, None, None


def _scaled(gradient: Tensor | None, factor: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The gradient times a scalar, rounded once; None where none was asked for.

    In place, because these are the largest tensors of the pass. torch raises at a second backward pass.
    """
    return None if gradient is None else gradient.mul_(factor).to(dtype)


def _add_every_row(head: HeadPass, gradient: HeadGradient, weights: RowWeights, mask: Tensor) -> Tensor:
    losses = torch.empty(head.targets.shape, dtype=head.loss_dtype, device=head.hidden.device)
    for rows in head.chunks():
        softmax = head.softmax(rows, note=weights.note)
        losses[rows] = softmax.losses
        gradient.add(rows, softmax, *weights.of(rows, mask[rows]))
    return losses


def _add_from_cache(
    head: HeadPass, gradient: HeadGradient, weights: RowWeights, select: ByLoss
) -> tuple[Tensor, Tensor, Tensor]:
    shape, device = (len(head.targets), head.weight.shape[0]), head.hidden.device
    cached = torch.empty(shape, dtype=_CACHE_DTYPE, device=device)
    losses, norms = torch.empty(2, shape[0], dtype=head.loss_dtype, device=device)
    measured = _measured(losses, select)
    chunks = head.chunks()
    first = 0
    for rows in chunks:
        # Chunks are consecutive in the cache, so that each is written in one piece.
        piece = cached[first : first + len(rows)]
        softmax = head.softmax(rows, piece, entropies=select.by_entropy, note=weights.note)
        first += len(rows)
        losses[rows], norms[rows] = softmax.losses, softmax.norms
        _keep_entropies(measured, rows, softmax)
    place = torch.empty(shape[0], dtype=torch.int64, device=device)
    place[torch.cat(chunks)] = torch.arange(shape[0], device=device)
    selected = select(*measured)
    for rows in head.chunks_of(_read_rows(selected, weights.trained(selected.mask)), head.hidden.dtype):
        kept = Softmax(cached[place[rows]], losses[rows], norms[rows])
        gradient.add(rows, kept, *weights.of(rows, selected.mask[rows]))
    return losses, selected.mask, selected.threshold


def _add_around_threshold(
    head: HeadPass, gradient: HeadGradient, weights: RowWeights, select: ByLoss, forecast: Forecast | None
) -> tuple[Tensor, Tensor, Tensor]:
    losses = torch.empty(head.targets.shape, dtype=head.loss_dtype, device=head.hidden.device)
    measured = _measured(losses, select)
    added = torch.zeros(head.targets.shape, dtype=torch.bool, device=head.hidden.device)
    for rows in head.chunks():
        softmax = head.softmax(rows, entropies=select.by_entropy, note=weights.note)
        losses[rows] = softmax.losses
        _keep_entropies(measured, rows, softmax)
        if forecast is not None:
            # The host must not wait for the number of sure rows, so the best `places` rows are taken, a fixed number.
            places = min(len(rows), math.ceil(forecast.share * len(rows)))
            of_losses, *of_entropies = (column[rows] for column in measured)
            margin, best = forecast.margin(of_losses, rows, *of_entropies).topk(places, sorted=False)
            sure, taken = margin > 0, rows[best]
            # No name keeps the copy: its memory is free for the next chunk.
            gradient.add(
                taken,
                Softmax(softmax.exponentials.index_select(0, best), softmax.losses[best], softmax.norms[best]),
                *weights.of(taken, sure),
            )
            added[taken] = sure
    selected = select(*measured)
    for rows in head.chunks_of(_read_rows(selected, weights.trained(selected.mask) ^ added), head.loss_dtype):
        missing = ~added[rows]
        change, soft = weights.of(rows, selected.mask[rows] | added[rows])
        gradient.add(rows, head.softmax(rows), change.where(missing, -change), soft, keep=missing)
    return losses, selected.mask, selected.threshold


def _measured(losses: Tensor, select: ByLoss) -> list[Tensor]:
    """What the choice depends on: the losses and, if needed, room for the entropies."""
    return [losses, torch.empty_like(losses)] if select.by_entropy else [losses]


def _keep_entropies(measured: list[Tensor], rows: Tensor, softmax: Softmax) -> None:
    if softmax.entropies is not None:
        measured[1][rows] = softmax.entropies


def _read_rows(selected: Selected, wanted: Tensor) -> Tensor:
    """Indices of the wanted rows. The host reads the device here only, and once per call."""
    count, stop = torch.stack([wanted.sum(), selected.stop]).tolist()
    if stop:
        raise NonFiniteCriterion(selected.non_finite.nonzero().squeeze(1).tolist())
    return wanted.nonzero_static(size=count).squeeze(1)
