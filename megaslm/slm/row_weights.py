"""The weights of the rows of one call to the head, gathered while it has their logits."""

import torch
from torch import Tensor

from megaslm.slm.choice import Weights
from megaslm.slm.head_pass import Softmax


class RowWeights:
    """The weights of a call's rows: their own factors, and further ones that become known chunk by chunk."""

    def __init__(self, own: Tensor, further: Weights | None = None, numbers: Tensor | None = None) -> None:
        """Takes the (T,) factors; the further ones, if any; and the numbers by which these know the rows."""
        self.own = own
        self._further, self._numbers = further, numbers
        self._selected = own if further is None else torch.zeros_like(own)
        self._others = torch.zeros_like(own) if further is not None and further.trains_others else None

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
        numbers = rows if self._numbers is None else self._numbers[rows]
        self._selected[rows] = self.own[rows] * self._further.of_selected(numbers, softmax).to(self.own.dtype)
        if self._others is not None:
            self._others[rows] = self._further.of_others(numbers, softmax).to(self.own.dtype)

    def where(self, selected: Tensor, rows: Tensor) -> Tensor:
        """The weights of (n,) rows under their part of a selection, (n,) bool."""
        return self._selected[rows].where(selected, 0.0 if self._others is None else self._others[rows])

    def under(self, mask: Tensor) -> Tensor:
        """The weights of all rows under a selection, (T,) bool."""
        return self._selected.where(mask, 0.0 if self._others is None else self._others)

    def trained(self, mask: Tensor) -> Tensor:
        """(T,) bool: the rows that have a gradient under a selection."""
        return mask if self._others is None else mask | (self._others != 0)
