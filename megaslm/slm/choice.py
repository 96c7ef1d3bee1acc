"""Which rows of one call to the head are trained on, in four variants; and what the head returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Every:
    """All valid rows. The head runs over every row, and need not know how many rows `mask` leaves out.

    `mask`: (T,) bool.
    """

    mask: Tensor


@dataclass(frozen=True)
class Known:
    """Rows that are known before the losses are.

    `mask`: (T,) bool. `rows`: (S,) int64, where the mask is true, ascending. `rest`: (R,) int64, further rows whose
    loss is computed, without a gradient.
    """

    mask: Tensor
    rows: Tensor
    rest: Tensor


@dataclass
class Deferred:
    """In place of a choice: rows that become known between the forward and the backward pass, which alone needs them.

    `known`: to be set before the backward pass; see `HeadOutput.decided`.
    """

    known: Known | None = None


class Selected(NamedTuple):
    """The result of a choice by loss.

    `mask`: (T,) bool. `threshold`: (G,) int64, see `HeadOutput`. `non_finite`: (T,) bool, rows that cannot be ranked
    because their value is NaN or infinite. `stop`: int64 scalar, the number of such rows on all ranks. Where it is not
    0, all ranks stop together.
    """

    mask: Tensor
    threshold: Tensor
    non_finite: Tensor
    stop: Tensor


class Forecast(Protocol):
    """A forecast of a choice by loss, made while only some of the losses are known."""

    @property
    def share(self) -> float:
        """The share of all rows that is likely to be chosen."""
        ...

    def margin(self, losses: Tensor, rows: Tensor) -> Tensor:
        """Values of the given rows minus the value above which a row is surely chosen: (n,) float32 of (n,) each."""
        ...


class ByLoss(Protocol):
    """A choice that depends on all losses of the call. Called once, under no_grad; may contain collectives."""

    @property
    def forecast(self) -> Forecast | None:
        """None without earlier steps: the head then waits for the choice."""
        ...

    def __call__(self, losses: Tensor) -> Selected:
        """Chooses among rows by their losses, (T,) float32."""
        ...

    def unrankable(self, losses: Tensor) -> Tensor:
        """(T,) bool: rows that cannot be ranked by these losses. No collectives."""
        ...


Choice = Every | Known | ByLoss


class HeadOutput(NamedTuple):
    """The head's result for a choice.

    `total`: float32 scalar, the sum of the chosen losses, differentiable. `losses`: (T,) float32, detached. `mask`:
    (T,) bool, the chosen rows. `threshold`: (G,) int64, the ordered image of the smallest chosen value of each group;
    empty where the choice was not made by groups. Under a `Deferred` choice `total` is 0 and `mask` is false everywhere
    until `decided`.
    """

    total: Tensor
    losses: Tensor
    mask: Tensor
    threshold: Tensor

    def view_as(self, targets: Tensor) -> "HeadOutput":
        """The same, with `losses` and `mask` reshaped from (T,) to the targets' (B, L)."""
        return self._replace(losses=self.losses.view(targets.shape), mask=self.mask.view(targets.shape))

    @classmethod
    def of_step(cls, outputs: Sequence["HeadOutput"]) -> "HeadOutput":
        """The output for all micro-batches of a step, one after the other. Its total is float64."""
        totals, losses, masks, thresholds = zip(*outputs, strict=True)
        return cls(torch.stack(totals).double().sum(), torch.cat(losses), torch.cat(masks), torch.cat(thresholds))

    def decided(self, deferred: Deferred, known: Known) -> "HeadOutput":
        """The output of a pass under a `Deferred` choice, once its rows are known. Its backward pass may then run."""
        deferred.known = known
        total = self.total + self.losses.flatten()[known.rows].sum()
        return self._replace(total=total, mask=known.mask.view_as(self.losses))


def no_threshold(device: torch.device) -> Tensor:
    """(0,) int64, in place of the groups' thresholds for choices that have none."""
    return torch.empty(0, dtype=torch.int64, device=device)
