"""Running selection: what a threshold keeps while the distribution changes under it."""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

import pytest
import torch
from torch import Tensor

from megaslm.slm.keys import target_keys
from megaslm.slm.objective import SelectiveObjective
from megaslm.slm.rule import KeepRatio, Moment, SelectionRule
from megaslm.slm.targets import Targets
from megaslm.slm.threshold import RecentThresholds, SelectionState, sort_keys_of, value_of_sort_key
from megaslm.slm.topk import AllReduceSum, on_this_rank_alone
from tests.chosen import output_of
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
    parts = list(zip(losses.chunk(micro_steps), keys.chunk(micro_steps), strict=True))
    targets = [Targets(torch.ones_like(part, dtype=torch.bool), key) for part, key in parts]
    plan = objective.plan_step(targets, Moment(step, 0), lambda number: parts[number][0], all_reduce_sum)
    outputs = [output_of(choice, part) for (part, _), choice in zip(parts, plan.choices, strict=True)]
    objective.end_step(plan, outputs)
    return [output.mask for output in outputs]


def test_the_reported_threshold_is_the_one_that_chose() -> None:
    generator = torch.Generator().manual_seed(0)
    objective = SelectiveObjective(RULE)
    one_step(objective, normal(generator), 1)
    losses = normal(generator)
    keys = target_keys(torch.arange(ROWS), 0, LENGTH)
    targets = Targets(torch.ones_like(losses, dtype=torch.bool), keys)
    plan = objective.plan_step([targets], Moment(2, 0), lambda number: losses, on_this_rank_alone)
    output = output_of(plan.choices[0], losses)
    threshold = objective.end_step(plan, [output])
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
    # 65,536 targets a step: the ratio of a single step has a standard deviation of at most 0.002 to itself.
    assert (settled - float(keep_ratio)).abs().max() < 0.01
    assert abs(float(settled.mean()) - float(keep_ratio)) < 0.002
    # What was selected too much at the change is never paid for by steps that train on nothing.
    assert min(ratios[CHANGE + 5 :]) > 0.7 * float(keep_ratio)


def test_over_a_whole_run_k_are_selected_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    objective = SelectiveObjective(RULE)
    steps = [one_step(objective, normal(generator)[:16] - 0.02 * step, step) for step in range(1, 201)]
    ratio = float(torch.stack([masks[0].double().mean() for masks in steps]).mean())
    # The threshold lags by a step or more, in a drift that alone would make it 0.607 to 0.615.
    assert abs(ratio - 0.6) < 0.003


def test_the_first_step_is_exact_and_the_denominator_is_k_n() -> None:
    generator = torch.Generator().manual_seed(0)
    objective = SelectiveObjective(RULE)
    (mask,) = one_step(objective, normal(generator), 1)
    assert int(mask.sum()) == round(0.6 * ROWS * LENGTH)
    targets = Targets(torch.ones(2, 7, dtype=torch.bool), target_keys(torch.arange(2), 0, 7))
    plan = objective.plan_step([targets], Moment(2, 0), lambda number: torch.zeros(0), on_this_rank_alone)
    assert float(plan.denominator) == pytest.approx(0.6 * 14, rel=1e-12)


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


def test_a_resumed_run_goes_on_alike() -> None:
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


def test_the_threshold_is_the_median_of_the_last_three_steps() -> None:
    recent = RecentThresholds()
    assert not recent
    for cut in (5, 1, 100, 7, 3):
        recent.add(torch.tensor(cut))
    assert recent.state().thresholds == (100, 7, 3)
    assert int(recent.median(torch.device("cpu"))) == 7


@pytest.mark.parametrize("empty_step", [1, 5])
def test_a_step_without_targets_leaves_the_next_one_sound(empty_step: int) -> None:
    objective = SelectiveObjective(RULE)
    empty = Targets(torch.zeros(2, 8, dtype=torch.bool), target_keys(torch.arange(2), 0, 8))
    generator = torch.Generator().manual_seed(0)
    ratios = []
    for step in range(1, 12):
        if step == empty_step:
            plan = objective.plan_step([empty], Moment(step, 0), lambda number: torch.zeros(2, 8), on_this_rank_alone)
            threshold = objective.end_step(plan, [output_of(plan.choices[0], torch.zeros(2, 8))])
            assert threshold is not None
            assert threshold.isnan() == (empty_step == 1)
        else:
            ratios.append(float(one_step(objective, normal(generator), step)[0].double().mean()))
    if empty_step == 1:
        # Nothing is known of the losses yet: the second step trains on all, not on nothing.
        assert ratios.pop(0) == 1.0
    assert all(abs(ratio - 0.6) < 0.07 for ratio in ratios)
    assert abs(ratios[-1] - 0.6) < 0.05
