"""Which rows of one call to the head are trained on, in the three ways in which that can be known."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Every:
    """All valid rows: the head runs over every row and need not know how many `mask` leaves out.

    `mask`: (T,) bool.
    """

    mask: Tensor


@dataclass(frozen=True)
class Known:
    """Rows that are known before their losses are.

    `mask`: (T,) bool. `rows`: (S,) int64, where the mask is true, ascending. `rest`: (R,) int64, rows whose loss is
    wanted beside them, without a gradient.
    """

    mask: Tensor
    rows: Tensor
    rest: Tensor

    @property
    def measured(self) -> Tensor:
        """(T,) bool: the rows whose loss is computed."""
        return self.mask.index_fill(0, self.rest, True)


class Selected(NamedTuple):
    """What a choice by loss comes to.

    `mask`: (T,) bool. `non_finite`: (T,) bool, the rows that cannot be ranked because their score is NaN or infinite.
    `stop`: int64 scalar, how many such rows there are on all ranks: they have to stop together.
    """

    mask: Tensor
    non_finite: Tensor
    stop: Tensor


class Forecast(Protocol):
    """A guess of what a choice by loss will come to, made while only some of the losses are known."""

    @property
    def share(self) -> float:
        """The part of all rows that is likely to be chosen."""
        ...

    def margin(self, losses: Tensor, rows: Tensor) -> Tensor:
        """How far the scores of the given rows lie above where a row is surely chosen: (n,) float32 of (n,) each."""
        ...


class ByLoss(Protocol):
    """A choice that depends on all losses of the call. Called once, under no_grad; may contain collectives."""

    @property
    def forecast(self) -> Forecast | None:
        """None where nothing is known: the head then waits for the choice."""
        ...

    @property
    def mask(self) -> Tensor:
        """(T,) bool: what was chosen, once it was."""
        ...

    @property
    def unrankable(self) -> Tensor:
        """(T,) bool: the rows that could not be ranked, once they had to be."""
        ...

    def __call__(self, losses: Tensor) -> Selected:
        """Chooses among the rows with the given losses, (T,) float32."""
        ...


Choice = Every | Known | ByLoss
