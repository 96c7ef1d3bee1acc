"""Running selection: what a threshold keeps while the distribution changes under it."""

import json
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megaslm.slm.choice import HeadOutput
from megaslm.slm.keys import target_keys
from megaslm.slm.measure import Measured
from megaslm.slm.objective import SelectiveObjective
from megaslm.slm.rule import KeepRatio, Moment, SelectionRule
from megaslm.slm.targets import Targets
from megaslm.slm.threshold import (
    EXACT_STEPS,
    NO_THRESHOLD,
    RecentThresholds,
    SelectionState,
    corrected,
    sort_keys_of,
    value_of_sort_key,
)
from megaslm.slm.topk import AllReduceSum, on_this_rank_alone
from tests.chosen import denominator_of, output_of
from tests.threads import run_together

ROWS, LENGTH = 256, 256
RULE = SelectionRule(KeepRatio(Decimal("0.6")), criterion="loss", mode="running")
CHANGE = 40

Draw = Callable[[int, torch.Generator], Tensor]


def normal(generator: torch.Generator) -> Tensor:
    return torch.randn(ROWS, LENGTH, generator=generator)


def equal(_: torch.Generator) -> Tensor:
    return torch.full((ROWS, LENGTH), 3.0)


DISTRIBUTIONS: dict[str, Draw] = {
    "a jump": lambda step, generator: normal(generator) * (7.0 if step > CHANGE else 1.0) + 5.0 * (step > CHANGE),
    "a collapse": lambda step, generator: normal(generator) * (0.01 if step > CHANGE else 1.0),
    "a drift": lambda step, generator: normal(generator) - 0.01 * step,
    "heavy tails": lambda step, generator: normal(generator) / (normal(generator) if step > CHANGE else 1.0),
    "all equal": lambda step, generator: equal(generator) if step > CHANGE else normal(generator),
    "no longer equal": lambda step, generator: normal(generator) if step > CHANGE else equal(generator),
    "a lattice": lambda step, generator: (2.0 * normal(generator)).round() if step > CHANGE else normal(generator),
    "one strange step": lambda step, generator: equal(generator) if step == CHANGE else normal(generator),
}


def one_step(
    objective: SelectiveObjective,
    losses: Tensor,
    step: int,
    all_reduce_sum: AllReduceSum = on_this_rank_alone,
    first_row: int = 0,
    micro_steps: int = 1,
) -> list[Tensor]:
    """The masks of a step in which every target is valid."""
    keys = target_keys(torch.arange(len(losses)) + first_row + step * ROWS, 0, losses.shape[1])
    parts = losses.chunk(micro_steps)
    targets = Targets(torch.ones_like(losses, dtype=torch.bool), keys)
    plan = objective.plan_step(
        targets, micro_steps, Moment(step, 0), lambda number: Measured(parts[number]), all_reduce_sum
    )
    outputs = [output_of(choice, part) for part, choice in zip(parts, plan.choices, strict=True)]
    objective.end_step(plan, HeadOutput.of_step(outputs))
    return [output.mask for output in outputs]


def test_the_reported_threshold_is_the_one_that_chose() -> None:
    generator = torch.Generator().manual_seed(0)
    objective = SelectiveObjective(RULE)
    for step in range(1, EXACT_STEPS + 1):
        one_step(objective, normal(generator), step)
    losses = normal(generator)
    keys = target_keys(torch.arange(ROWS), 0, LENGTH)
    targets = Targets(torch.ones_like(losses, dtype=torch.bool), keys)
    plan = objective.plan_step(targets, 1, Moment(EXACT_STEPS + 1, 0), never_measured, on_this_rank_alone)
    output = output_of(plan.choices[0], losses)
    threshold = objective.end_step(plan, output)
    assert threshold is not None
    assert losses[output.mask].min() >= threshold >= losses[~output.mask].max()


@pytest.mark.parametrize(
    "keep_ratio", [pytest.param("0.05", marks=pytest.mark.slow), "0.6", pytest.param("0.9", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_after_any_change_the_ratio_returns_within_fifty_steps(name: str, keep_ratio: str) -> None:
    generator = torch.Generator().manual_seed(0)
    objective = SelectiveObjective(replace(RULE, keep_ratio=KeepRatio(Decimal(keep_ratio))))
    ratios = []
    for step in range(1, CHANGE + 81):
        (mask,) = one_step(objective, DISTRIBUTIONS[name](step, generator), step)
        ratios.append(float(mask.double().mean()))
    settled = torch.tensor(ratios[CHANGE + 50 :])
    # 65,536 targets a step: the ratio of a step has a standard deviation of 0.002, and so does its forecast.
    assert (settled - float(keep_ratio)).abs().max() < 0.012
    assert abs(float(settled.mean()) - float(keep_ratio)) < 0.0005
    # What was selected too much at the change is never paid for by steps that train on nothing.
    assert min(ratios[CHANGE + 5 :]) > 0.7 * float(keep_ratio)


def test_over_a_whole_run_k_are_selected_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    objective = SelectiveObjective(RULE)
    steps = [one_step(objective, normal(generator)[:16] - 0.02 * step, step) for step in range(1, 201)]
    ratio = float(torch.stack([masks[0].double().mean() for masks in steps]).mean())
    # The threshold lags by a step, in a drift that alone would make it 0.607.
    assert abs(ratio - 0.6) < 0.001


def test_the_first_steps_are_exact_and_the_denominator_is_k_n() -> None:
    generator = torch.Generator().manual_seed(0)
    objective = SelectiveObjective(RULE)
    for step in range(1, EXACT_STEPS + 1):
        (mask,) = one_step(objective, normal(generator) - step, step)
        assert int(mask.sum()) == round(0.6 * ROWS * LENGTH)
    targets = Targets(torch.ones(2, 7, dtype=torch.bool), target_keys(torch.arange(2), 0, 7))
    plan = objective.plan_step(targets, 1, Moment(EXACT_STEPS + 1, 0), never_measured, on_this_rank_alone)
    assert float(denominator_of(plan)) == pytest.approx(0.6 * 14, rel=1e-12)


def never_measured(number: int) -> Measured:
    raise AssertionError(f"micro-batch {number} was measured without need")


RECORDED = json.loads(Path(__file__).with_name("excess_quantiles.json").read_text(encoding="utf-8"))
"""Excess losses of a real training that began with random weights; the file says which."""


@pytest.mark.parametrize("keep_ratio", ["0.4", "0.6", "0.7", "0.8"])
def test_the_first_steps_of_a_training_select_k_on_average(keep_ratio: str) -> None:
    objective = SelectiveObjective(replace(RULE, keep_ratio=KeepRatio(Decimal(keep_ratio))))
    ratios = []
    for step, quantiles in enumerate(torch.tensor(RECORDED["quantiles"]), 1):
        places = torch.linspace(0, len(quantiles) - 1, 64 * 64)
        below = places.long().clamp(max=len(quantiles) - 2)
        losses = quantiles[below].lerp(quantiles[below + 1], places - below)
        ratios.append(float(one_step(objective, losses.view(64, 64), step)[0].double().mean()))
    assert abs(sum(ratios[:12]) / 12 - float(keep_ratio)) < 0.01
    assert abs(sum(ratios) / len(ratios) - float(keep_ratio)) < 0.003


@pytest.mark.parametrize("garbage", [-3.0, 3.0])
def test_a_step_of_garbage_hardly_moves_the_next_one(garbage: float) -> None:
    generator = torch.Generator().manual_seed(0)
    objective = SelectiveObjective(RULE)
    ratios = [
        float(one_step(objective, normal(generator)[:32] + garbage * (step == 8), step)[0].double().mean())
        for step in range(1, 16)
    ]
    assert abs(ratios[7] - 0.6) > 0.3
    assert abs(ratios[8] - 0.6) < 0.03
    # Half of what the garbage selected beyond K, or below it, is taken back: by less than half of K.
    assert 0.3 < min(ratios[8:]) <= max(ratios[8:]) < 0.9
    assert abs(ratios[-1] - 0.6) < 0.03


def test_ranks_and_micro_steps_share_one_threshold() -> None:
    generator = torch.Generator().manual_seed(0)
    losses = [normal(generator)[:32] for _ in range(5)]

    def selected(ranks: int, micro_steps: int) -> tuple[set[SelectionState], Tensor]:
        def rank(number: int, all_reduce_sum: AllReduceSum) -> tuple[SelectionState, Tensor]:
            objective = SelectiveObjective(RULE)
            rows = 32 // ranks
            masks = [
                torch.cat(
                    one_step(
                        objective,
                        step_losses.chunk(ranks)[number],
                        step,
                        all_reduce_sum,
                        first_row=number * rows,
                        micro_steps=micro_steps,
                    )
                )
                for step, step_losses in enumerate(losses, 1)
            ]
            return objective.state(), torch.stack(masks)

        states, masks = zip(*run_together(ranks, rank), strict=True)
        return set(states), torch.cat(masks, dim=1)

    states, alone = selected(1, 1)
    for ranks, micro_steps in ((1, 4), (2, 1), (2, 2), (4, 2)):
        others, divided = selected(ranks, micro_steps)
        assert others == states
        assert torch.equal(alone, divided)


def test_a_resumed_run_resumes_alike() -> None:
    def run(objective: SelectiveObjective, steps: range) -> list[Tensor]:
        return [
            one_step(objective, torch.randn(16, 64, generator=torch.Generator().manual_seed(step)), step)[0]
            for step in steps
        ]

    undisturbed = SelectiveObjective(RULE)
    first, then = run(undisturbed, range(1, 8)), run(undisturbed, range(8, 12))
    interrupted = SelectiveObjective(RULE)
    run(interrupted, range(1, 8))
    state = interrupted.state()
    assert len(first) == 7
    assert all(
        torch.equal(one, other)
        for one, other in zip(run(SelectiveObjective(RULE, state), range(8, 12)), then, strict=True)
    )
    assert not torch.equal(run(SelectiveObjective(RULE, replace(state, surplus=0.4)), range(8, 12))[-1], then[-1])


def test_ranks_order_by_score_and_tell_equal_scores_apart() -> None:
    values = torch.tensor([-1.0, 0.5, 0.5, 2.0])
    ranks = sort_keys_of(values, torch.arange(4))
    assert ranks[0] < min(ranks[1], ranks[2])
    assert max(ranks[1], ranks[2]) < ranks[3]
    assert ranks[1] != ranks[2]
    assert torch.equal(value_of_sort_key(ranks), values)


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [
        ([5.0], 5.0),
        ([5.0, 1.0], 1.0),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 5.0),  # A drift: the last.
        ([1.0, 1.5, 1.0, 1.5, 1.0, 1.5], 1.5),  # Noise: the last.
        ([1.0, 1.5, 1.0, 1.5, 1.0, 9.0], 1.5),  # An outlier: the median of three.
        ([1.5, 1.0, 1.5, 1.0, 9.0, 1.5], 1.5),  # After it: the last.
        ([1.5, 1.0, 1.5, 1.0, 9.0, 8.5], 8.5),  # A lasting change: the last.
        ([2.0, 2.0, 2.0, 2.0, 3.0], 2.0),  # All values were equal: any change is an outlier at first.
    ],
)
def test_the_forecast_is_the_last_threshold_unless_it_is_an_outlier(thresholds: list[float], expected: float) -> None:
    recent = RecentThresholds()
    assert len(recent) == 0
    for number, value in enumerate(thresholds):
        recent.add(sort_keys_of(torch.tensor([value]), torch.tensor([number]))[0])
    forecast = recent.forecast(torch.device("cpu"))
    assert float(value_of_sort_key(forecast)) == expected
    assert int(forecast) in recent.state().thresholds


def test_of_the_surplus_half_is_taken_back_in_the_next_step() -> None:
    count, valid = torch.tensor(600), torch.tensor(1000)
    recent = RecentThresholds(SelectionState(surplus=0.1))
    surplus = recent.surplus_with(torch.tensor(660), count)
    assert float(surplus) == pytest.approx(0.2)
    assert int(corrected(count, valid, surplus)) == 540
    assert int(corrected(count, valid, -surplus)) == 660
    assert int(corrected(count, valid, torch.tensor(-2.0))) == 1000
    assert float(recent.surplus_with(torch.tensor(10_000), count)) == 1.0
    assert float(RecentThresholds(SelectionState(surplus=-0.9)).surplus_with(torch.tensor(0), count)) == -1.0


def test_six_thresholds_are_stored_and_the_three_of_earlier_builds_are_read() -> None:
    recent = RecentThresholds(SelectionState((7, 3, 5)))
    assert recent.state() == SelectionState((7, 3, 5))
    assert len(recent) == EXACT_STEPS
    for threshold in range(10, 14):
        recent.add(torch.tensor(threshold))
    assert recent.state().thresholds == (3, 5, 10, 11, 12, 13)


def test_a_step_without_targets_repeats_a_threshold() -> None:
    recent = RecentThresholds()
    for threshold in (NO_THRESHOLD, NO_THRESHOLD):
        recent.add(torch.tensor(threshold))
    assert int(recent.forecast(torch.device("cpu"))) == NO_THRESHOLD
    for threshold in (9, 7, NO_THRESHOLD, 8):
        recent.add(torch.tensor(threshold))
    assert recent.state().thresholds == (9, 9, 9, 7, 7, 8)


@pytest.mark.parametrize("empty_step", [1, 5])
def test_a_step_without_targets_leaves_the_next_one_sound(empty_step: int) -> None:
    objective = SelectiveObjective(RULE)
    empty = Targets(torch.zeros(2, 8, dtype=torch.bool), target_keys(torch.arange(2), 0, 8))
    generator = torch.Generator().manual_seed(0)
    ratios = []
    for step in range(1, 12):
        if step == empty_step:
            plan = objective.plan_step(
                empty, 1, Moment(step, 0), lambda number: Measured(torch.zeros(2, 8)), on_this_rank_alone
            )
            threshold = objective.end_step(plan, output_of(plan.choices[0], torch.zeros(2, 8)))
            assert threshold is not None
            assert threshold.isnan() == (empty_step == 1)
        else:
            ratios.append(float(one_step(objective, normal(generator), step)[0].double().mean()))
    assert all(abs(ratio - 0.6) < 0.07 for ratio in ratios)
    assert abs(ratios[-1] - 0.6) < 0.05
