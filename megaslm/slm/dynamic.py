"""Choices that depend on the model's losses: the top of each group, or all values above a threshold."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megaslm.slm.choice import Selected, no_threshold
from megaslm.slm.targets import LossCriterion, Targets, excess_loss
from megaslm.slm.threshold import RecentThresholds, sort_keys_of, value_of_sort_key
from megaslm.slm.topk import AllReduceSum, select_top


@dataclass(frozen=True)
class RankedTargets:
    """Targets in groups, (G, n), and the criterion that ranks them. `eligible`: (G, n) bool."""

    targets: Targets
    eligible: Tensor
    criterion: LossCriterion

    def values(self, losses: Tensor) -> Tensor:
        """(G, n) float32 values from losses of the same number."""
        losses = losses.view_as(self.eligible)
        return losses if self.criterion == "loss" else excess_loss(losses, self.targets.needed_ref_loss())

    def unrankable(self, values: Tensor) -> Tensor:
        """(G, n) bool: eligible targets whose value is NaN or infinite."""
        return self.eligible & ~torch.isfinite(values)


@dataclass(frozen=True)
class ThresholdForecast:
    """Forecasts that a row is chosen where it lies above the recent thresholds by more than their spread.

    `threshold`: float32 scalar, the value above which a row is surely chosen.
    """

    ranked: RankedTargets
    share: float
    threshold: Tensor

    def margin(self, losses: Tensor, rows: Tensor) -> Tensor:
        """See `Forecast`."""
        values = losses
        if self.ranked.criterion == "excess":
            values = excess_loss(losses, self.ranked.targets.needed_ref_loss().flatten()[rows])
        return (values - self.threshold).where(self.ranked.eligible.flatten()[rows], float("-inf"))


@dataclass(frozen=True, eq=False)
class TopOfGroups:
    """The `count` largest values of each group, over the ranks that share the group.

    `count`: (G,) int64, equal on every rank that shares the group. `rank_sum` sums over those ranks. `all_reduce_sum`
    sums over all ranks, because all ranks have to stop together.
    """

    ranked: RankedTargets
    count: Tensor
    rank_sum: AllReduceSum
    all_reduce_sum: AllReduceSum
    forecast: ThresholdForecast | None

    def __call__(self, losses: Tensor) -> Selected:
        """See `ByLoss`."""
        ranked = self.ranked
        values = ranked.values(losses)
        top = select_top(values, ranked.targets.keys, ranked.eligible, self.count, self.rank_sum)
        non_finite = ranked.unrankable(values).flatten()
        return Selected(top.mask.flatten(), top.threshold, non_finite, self.all_reduce_sum(non_finite.sum()))

    def unrankable(self, losses: Tensor) -> Tensor:
        """See `ByLoss`."""
        return self.ranked.unrankable(self.ranked.values(losses)).flatten()


@dataclass(frozen=True, eq=False)
class AboveThreshold:
    """The eligible targets whose (value, hash of key) is at or above a sort key.

    `threshold`: int64 scalar, the same on every rank.
    """

    ranked: RankedTargets
    threshold: Tensor
    all_reduce_sum: AllReduceSum
    forecast: ThresholdForecast | None

    def __call__(self, losses: Tensor) -> Selected:
        """See `ByLoss`."""
        ranked = self.ranked
        values = ranked.values(losses)
        mask = (ranked.eligible & (sort_keys_of(values, ranked.targets.keys) >= self.threshold)).flatten()
        non_finite = ranked.unrankable(values).flatten()
        return Selected(mask, no_threshold(mask.device), non_finite, self.all_reduce_sum(non_finite.sum()))

    def unrankable(self, losses: Tensor) -> Tensor:
        """See `ByLoss`."""
        return self.ranked.unrankable(self.ranked.values(losses)).flatten()


def forecast_from(
    recent: RecentThresholds, ranked: RankedTargets, share: float, *, surely: bool
) -> ThresholdForecast | None:
    """The forecast for this step from the steps before; None before the first step.

    Args:
        recent: thresholds of the steps before.
        ranked: the targets to choose among.
        share: the share of them that is to be chosen.
        surely: whether the steps before set the threshold of this step, in place of forecasting it.
    """
    if not recent:
        return None
    device = ranked.eligible.device
    threshold = value_of_sort_key(recent.forecast(device))
    return ThresholdForecast(ranked, share, threshold if surely else threshold + recent.spread(device))
