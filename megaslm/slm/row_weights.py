"""The weights of the rows of one call to the head, gathered while it has their logits."""

import torch
from torch import Tensor

from megaslm.slm.choice import Weights
from megaslm.slm.distillation import Distilled
from megaslm.slm.head_pass import Note, Softmax, SoftRows


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
