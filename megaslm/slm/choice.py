"""Which rows of one call to the head are trained on, in the three ways in which that can be known; what it gives."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
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

    `mask`: (T,) bool. `threshold`: (G,) int64, see `HeadOutput`. `non_finite`: (T,) bool, the rows that cannot be
    ranked because their value is NaN or infinite. `stop`: int64 scalar, how many such rows there are on all ranks: they
    have to stop together.
    """

    mask: Tensor
    threshold: Tensor
    non_finite: Tensor
    stop: Tensor


class Forecast(Protocol):
    """A guess of what a choice by loss will come to, made while only some of the losses are known."""

    @property
    def share(self) -> float:
        """The part of all rows that is likely to be chosen."""
        ...

    def margin(self, losses: Tensor, rows: Tensor) -> Tensor:
        """How far the values of the given rows lie above where a row is surely chosen: (n,) float32 of (n,) each."""
        ...


class ByLoss(Protocol):
    """A choice that depends on all losses of the call. Called once, under no_grad; may contain collectives."""

    @property
    def forecast(self) -> Forecast | None:
        """None where nothing is known: the head then waits for the choice."""
        ...

    def __call__(self, losses: Tensor) -> Selected:
        """Chooses among the rows with the given losses, (T,) float32."""
        ...

    def unrankable(self, losses: Tensor) -> Tensor:
        """(T,) bool: the rows that cannot be ranked by these losses. No collectives."""
        ...


Choice = Every | Known | ByLoss


class HeadOutput(NamedTuple):
    """What the head gives for a choice.

    `total`: float32 scalar, the sum of the chosen losses, differentiable. `losses`: (T,) float32, detached. `mask`:
    (T,) bool, what was chosen. `threshold`: (G,) int64, the ordered image of the smallest value chosen of each group,
    empty where there were no groups to choose from.
    """

    total: Tensor
    losses: Tensor
    mask: Tensor
    threshold: Tensor

    def view_as(self, targets: Tensor) -> "HeadOutput":
        """The same for (B, L) targets in place of T."""
        return self._replace(losses=self.losses.view(targets.shape), mask=self.mask.view(targets.shape))


def no_threshold(device: torch.device) -> Tensor:
    """In place of the thresholds of groups, where the choice was made in another way; (0,) int64."""
    return torch.empty(0, dtype=torch.int64, device=device)
