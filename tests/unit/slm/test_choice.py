"""Forecasts of a choice: what the head gives its gradient before the choice is made."""

import pytest
import torch

from megaslm.slm.choice import AboveThreshold, forecast_from
from megaslm.slm.criterion import Candidates, formula_of
from megaslm.slm.keys import target_keys
from megaslm.slm.targets import Targets
from megaslm.slm.threshold import RecentThresholds, sort_keys_of
from megaslm.slm.topk import on_this_rank_alone

LENGTH = 64
LAST, SPREAD = 1.25, 0.25
"""Of the thresholds 1.0, 1.75 and 1.25: the last, and the mean distance from their median."""


@pytest.fixture
def recent() -> RecentThresholds:
    recent = RecentThresholds()
    for threshold in (1.0, 1.75, LAST):
        recent.add(sort_keys_of(torch.tensor([threshold]), torch.tensor([0]))[0])
    return recent


@pytest.fixture
def candidates() -> Candidates:
    valid = torch.ones(1, LENGTH, dtype=torch.bool)
    return Candidates(Targets(valid, target_keys(torch.tensor([1]), 0, LENGTH)), valid, formula_of("loss"))


def test_under_a_running_threshold_the_forecast_leaves_nothing_to_a_second_pass(
    recent: RecentThresholds, candidates: Candidates
) -> None:
    losses, rows = torch.linspace(0.0, 2.5, LENGTH), torch.arange(LENGTH)
    forecast = forecast_from(recent, candidates, 0.6, surely=True)
    assert forecast is not None
    choice = AboveThreshold(candidates, on_this_rank_alone, forecast, recent.forecast(losses.device))
    assert torch.equal(forecast.margin(losses, rows) > 0, choice(losses).mask)


def test_before_an_exact_choice_only_rows_beyond_the_spread_are_sure(
    recent: RecentThresholds, candidates: Candidates
) -> None:
    losses, rows = torch.linspace(0.0, 2.5, LENGTH), torch.arange(LENGTH)
    forecast = forecast_from(recent, candidates, 0.6, surely=False)
    assert forecast is not None
    assert torch.equal(forecast.margin(losses, rows) > 0, losses > LAST + SPREAD)
