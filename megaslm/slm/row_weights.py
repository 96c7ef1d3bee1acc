"""The weights of the rows of one call to the head, gathered while it has their logits."""

import torch
from torch import Tensor

from megaslm.slm.choice import Weights
from megaslm.slm.distillation import Distilled
from megaslm.slm.head_pass import Note, Softmax, SoftRows


class RowWeights:
    """The weights of a call's rows: their own factors, and further ones that become known chunk by chunk."""

    def __init__(self, own: Tensor, further: Weights | None = None, numbers: Tensor | None = None) -> None:
        """Takes the (T,) factors; the further ones, if any; and the numbers by which these know the rows."""
        self.own = own
        self._further, self._numbers = further, numbers
        self._selected = own if further is None else torch.zeros_like(own)
        self._others = torch.zeros_like(own) if further is not None and further.trains_others else None
        teacher = None if further is None else further.teacher
        self._distilled = None if teacher is None else Distilled(teacher, own)

    @property
    def has_further(self) -> bool:
        """Whether there are factors beside the rows' own."""
        return self._further is not None

    @property
    def trains_others(self) -> bool:
        """Whether rows that are not selected have weights."""
        return self._others is not None

    def note(self, rows: Tensor, softmax: Softmax) -> None:
        """Computes the weights of a chunk, before its exponentials are used up."""
        if self._further is None:
            return
        numbers = self._numbers_of(rows)
        self._selected[rows] = self.own[rows] * self._further.of_selected(numbers, softmax).to(self.own.dtype)
        if self._others is not None:
            self._others[rows] = self._further.of_others(numbers, softmax).to(self.own.dtype)

    @property
    def note_soft(self) -> Note | None:
        """Takes the unrounded softmax of a chunk; None where nothing reads it."""
        distilled = self._distilled
        if distilled is None:
            return None
        return lambda rows, softmax: distilled.note(rows, self._numbers_of(rows), softmax)

    def soft(self, selected: Tensor, rows: Tensor) -> SoftRows | None:
        """What the gradient of (n,) rows is made of besides their targets, under their part of a selection."""
        return None if self._distilled is None else self._distilled.rows(selected, rows)

    def total(self, losses: Tensor, mask: Tensor) -> Tensor:
        """The weighted sum of all rows' losses under a selection: a scalar of (T,) cross-entropies and (T,) bool."""
        if self._distilled is not None:
            losses = self._distilled.mixed(losses, mask)
        return (losses * self.under(mask)).where(self.trained(mask), 0.0).sum()

    def where(self, selected: Tensor, rows: Tensor) -> Tensor:
        """The weights of (n,) rows under their part of a selection, (n,) bool."""
        return self._selected[rows].where(selected, 0.0 if self._others is None else self._others[rows])

    def under(self, mask: Tensor) -> Tensor:
        """The weights of all rows under a selection, (T,) bool."""
        return self._selected.where(mask, 0.0 if self._others is None else self._others)

    def trained(self, mask: Tensor) -> Tensor:
        """(T,) bool: the rows that have a gradient under a selection."""
        return mask if self._others is None else mask | (self._others != 0)

    def _numbers_of(self, rows: Tensor) -> Tensor:
        return rows if self._numbers is None else self._numbers[rows]
