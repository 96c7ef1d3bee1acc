"""Which rows of one call to the head are trained on, and with which weights: choices made before the losses are known,
and by the losses. And what the head returns."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from megaslm.slm.criterion import Candidates
from megaslm.slm.distillation import Teacher
from megaslm.slm.head_pass import Softmax
from megaslm.slm.targets import in_any_group
from megaslm.slm.threshold import RecentThresholds, sort_keys_of, value_of_sort_key
from megaslm.slm.topk import AllReduceSum, Quota, select_quota


class Weights(Protocol):
    """The weights of the rows of one call, see `megaslm.slm.weights`. Computed under no_grad; no collectives."""

    @property
    def trains_others(self) -> bool:
        """Whether rows that are not selected are trained on, too."""
        ...

    @property
    def teacher(self) -> Teacher | None:
        """What rows are drawn to besides their own targets; None: nothing."""
        ...

    def of_selected(self, rows: Tensor, softmax: Softmax) -> Tensor:
        """The weights of the given rows where they are selected: (n,) of (n,) int64 and the softmax of these rows."""
        ...

    def of_others(self, rows: Tensor, softmax: Softmax) -> Tensor:
        """Their weights where they are not."""
        ...


@dataclass(frozen=True)
class Every:
    """All valid rows. The head runs over every row, and need not know how many rows `mask` leaves out.

    `mask`: (T,) bool. `weights`: None where all are 1, as in each choice.
    """

    mask: Tensor
    weights: Weights | None = None


@dataclass(frozen=True)
class Known:
    """Rows that are known before the losses are.

    `mask`: (T,) bool. `rows`: (S,) int64, where the mask is true, ascending. `rest`: (R,) int64, further rows whose
    loss is computed, without a gradient.
    """

    mask: Tensor
    rows: Tensor
    rest: Tensor
    weights: Weights | None = None


@dataclass
class Deferred:
    """In place of a choice: rows that become known between the forward and the backward pass, which alone needs them.

    `known`: to be set before the backward pass; see `HeadOutput.decided`. `by_entropy`: whether the rows will be chosen
    by the entropies of the predictions; `entropies`, (T,) float32, then takes them in the forward pass. `applied`: (T,)
    float32 or None, takes the weights in the backward pass.
    """

    known: Known | None = None
    by_entropy: bool = False
    entropies: Tensor | None = None
    applied: Tensor | None = None


class Selected(NamedTuple):
    """The result of a choice by loss.

    `mask`: (T,) bool. `threshold`: (G,) int64, see `HeadOutput`. `non_finite`: (T,) bool, rows that cannot be sorted
    because their value is NaN or infinite. `stop`: int64 scalar, the number of such rows on all ranks. Where it is not
    0, all ranks stop together.
    """

    mask: Tensor
    threshold: Tensor
    non_finite: Tensor
    stop: Tensor


@dataclass(frozen=True)
class Forecast:
    """Forecasts, while only some of the losses are known, that a row is chosen where it lies above the recent
    thresholds by more than their spread.

    `share`: of all rows, that is likely to be chosen. `threshold`: float32 scalar, the value above which a row is
    surely chosen.
    """

    candidates: Candidates
    share: float
    threshold: Tensor

    def margin(self, losses: Tensor, rows: Tensor, entropies: Tensor | None = None) -> Tensor:
        """Values of the given rows minus the threshold: (n,) float32 of (n,) each."""
        margin = self.candidates.values_at(losses, rows, entropies) - self.threshold
        return margin.where(self.candidates.eligible.flatten()[rows], float("-inf"))


@dataclass(frozen=True, eq=False)
class ByLoss(ABC):
    """A choice that depends on all losses or entropies of the call. Called once, under no_grad.

    `candidates`: in groups that hold each target once, or those of `Targets.in_domains`. `all_reduce_sum` sums over all
    ranks, because all have to stop together. `forecast`: None where there is none: the head then waits for the choice.
    """

    candidates: Candidates
    all_reduce_sum: AllReduceSum
    forecast: Forecast | None
    weights: Weights | None = field(default=None, kw_only=True)

    @property
    def by_entropy(self) -> bool:
        """Whether it depends on the entropies of the predictions."""
        return self.candidates.by_entropy

    @abstractmethod
    def _chosen(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen ones by (G, n) values: (G, n) bool, and (G,) int64, see `HeadOutput`."""

    def __call__(self, losses: Tensor, entropies: Tensor | None = None) -> Selected:
        """Chooses among rows by their losses, and by their entropies if it depends on them; (T,) float32 each."""
        values = self.candidates.values(losses, entropies)
        chosen, threshold = self._chosen(values)
        mask, non_finite = (in_any_group(marks, len(losses)) for marks in (chosen, self.candidates.unsortable(values)))
        return Selected(mask, threshold, non_finite, self.all_reduce_sum(non_finite.sum()))

    def unsortable(self, losses: Tensor) -> Tensor:
        """(T,) bool: rows that cannot be sorted, as far as (T,) losses tell. No collectives."""
        # An entropy is NaN where the loss is, and finite where the loss is infinite.
        entropies = torch.ones_like(losses).where(~losses.isnan(), losses) if self.by_entropy else None
        return in_any_group(self.candidates.unsortable(self.candidates.values(losses, entropies)), len(losses))


@dataclass(frozen=True, eq=False)
class TopOfGroups(ByLoss):
    """The largest values of each group, over the ranks that share the group.

    `quota`: equal on every rank that shares the group. `rank_sum` sums over those ranks.
    """

    quota: Quota
    rank_sum: AllReduceSum

    def _chosen(self, values: Tensor) -> tuple[Tensor, Tensor]:
        keys, eligible = self.candidates.targets.keys, self.candidates.eligible
        return select_quota(values, keys, eligible, self.quota, self.rank_sum)


@dataclass(frozen=True, eq=False)
class AboveThreshold(ByLoss):
    """The eligible targets whose (value, hash of key) is at or above a sort key.

    `sort_key`: int64 scalar, the same on every rank.
    """

    sort_key: Tensor

    def _chosen(self, values: Tensor) -> tuple[Tensor, Tensor]:
        sort_keys = sort_keys_of(values, self.candidates.targets.keys)
        return self.candidates.eligible & (sort_keys >= self.sort_key), no_threshold(values.device)


Choice = Every | Known | ByLoss


class HeadOutput(NamedTuple):
    """The head's result for a choice.

    `total`: float32 scalar, the weighted sum of the chosen losses, differentiable. `losses`: (T,) float32, detached.
    `mask`: (T,) bool, the chosen rows. `threshold`: (G,) int64, the ordered image of the smallest chosen value of each
    group; empty where the choice was not made by groups. `applied`: (T,) float32, the weights of the losses; None where
    the choice has none. Under a `Deferred` choice `total` is 0 and `mask` is false everywhere until `decided`. Its
    value is then a sum without weights: these are in `applied` after the backward pass.
    """

    total: Tensor
    losses: Tensor
    mask: Tensor
    threshold: Tensor
    applied: Tensor | None = None

    def view_as(self, targets: Tensor) -> "HeadOutput":
        """The same, with what is of the rows reshaped from (T,) to the targets' (B, L)."""
        return self._replace(
            losses=self.losses.view(targets.shape),
            mask=self.mask.view(targets.shape),
            applied=None if self.applied is None else self.applied.view(targets.shape),
        )

    @classmethod
    def of_step(cls, outputs: Sequence["HeadOutput"]) -> "HeadOutput":
        """The output for all micro-batches of a step, one after the other. Its total is float64."""
        totals, losses, masks, thresholds, applied = zip(*outputs, strict=True)
        return cls(
            torch.stack(totals).double().sum(),
            torch.cat(losses),
            torch.cat(masks),
            torch.cat(thresholds),
            None if applied[0] is None else torch.cat(applied),
        )

    def decided(self, deferred: Deferred, known: Known) -> "HeadOutput":
        """The output of a pass under a `Deferred` choice, once its rows are known. Its backward pass may then run."""
        deferred.known = known
        total = self.total + self.losses.flatten()[known.rows].sum()
        applied = None if known.weights is None else torch.zeros_like(self.losses)
        deferred.applied = None if applied is None else applied.view(-1)
        return self._replace(total=total, mask=known.mask.view_as(self.losses), applied=applied)


def no_threshold(device: torch.device) -> Tensor:
    """(0,) int64, in place of the groups' thresholds for choices that have none."""
    return torch.empty(0, dtype=torch.int64, device=device)


def forecast_from(recent: RecentThresholds, candidates: Candidates, share: float, *, surely: bool) -> Forecast | None:
    """The forecast for this step from the steps before. None before the first step, and where targets are sorted by the
    means of their spans, which are unknown while some of the losses are.

    Args:
        recent: thresholds of the steps before.
        candidates: the targets to choose among.
        share: the share of them that is to be chosen.
        surely: whether the steps before set the threshold of this step, in place of forecasting it.
    """
    if not recent or candidates.targets.before is not None:
        return None
    device = candidates.eligible.device
    threshold = value_of_sort_key(recent.forecast(device))
    return Forecast(candidates, share, threshold if surely else threshold + recent.spread(device))
