"""What a step selects: by every criterion, in every scope and mode, over any division into ranks and micro-steps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megaslm.errors import NonFiniteCriterion
from megaslm.slm.choice import Every, HeadOutput, Known
from megaslm.slm.criterion import Criterion
from megaslm.slm.keys import row_of, target_keys
from megaslm.slm.measure import Measured
from megaslm.slm.objective import CausalObjective, Objective, SelectiveObjective
from megaslm.slm.rule import KeepRatio, Moment, Scope, SelectionRule, StepPlan
from megaslm.slm.targets import Targets
from megaslm.slm.topk import AllReduceSum, on_this_rank_alone
from megaslm.slm.valid_targets import valid_targets
from tests.chosen import denominator_of, joined, output_of
from tests.threads import run_together

EOS = 2
SCOPES: list[Scope] = ["batch", "sequence", "microbatch"]
START = Moment(step=1, tokens=0)
K60 = KeepRatio(Decimal("0.6"))


@dataclass(frozen=True)
class Rows:
    """Rows of targets with the losses that a model has there."""

    targets: Targets
    losses: Tensor

    @classmethod
    def drawn(cls, seed: int, rows: int = 3, length: int = 10) -> "Rows":
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, 12, (rows, length + 1), generator=generator)
        nats = [torch.rand(rows, length, generator=generator) * 4 for _ in range(3)]
        keys = target_keys(torch.arange(rows) + 100 * seed, 0, length)
        return cls(Targets(valid_targets(tokens, EOS), keys, {"ref_loss": nats[0], "ref_entropy": nats[1]}), nats[2])

    def __getitem__(self, rows: slice) -> "Rows":
        return Rows(self.targets[rows], self.losses[rows])

    def __len__(self) -> int:
        return len(self.losses)

    @property
    def excess(self) -> Tensor:
        return self.losses - self.targets.column("ref_loss")


def never_measured(number: int) -> Measured:
    raise AssertionError(f"micro-batch {number} was measured without need")


def choose(
    objective: Objective,
    micro_batches: Sequence[Rows],
    all_reduce_sum: AllReduceSum = on_this_rank_alone,
    moment: Moment = START,
) -> tuple[StepPlan, list[Tensor]]:
    """Plans and ends a step; gives the plan and the (B, L) masks of its micro-batches."""
    plan = objective.plan_step(
        joined([part.targets for part in micro_batches]),
        len(micro_batches),
        moment,
        lambda number: Measured(micro_batches[number].losses),
        all_reduce_sum,
    )
    outputs = [output_of(choice, part.losses) for part, choice in zip(micro_batches, plan.choices, strict=True)]
    objective.end_step(plan, HeadOutput.of_step(outputs))
    return plan, [output.mask for output in outputs]


def test_what_follows_eos_is_no_target_and_eos_is_one() -> None:
    tokens = torch.tensor([[5, EOS, 7, 8, EOS, EOS, EOS]])
    assert valid_targets(tokens, EOS).tolist() == [[True, False, True, True, False, False]]


@pytest.mark.parametrize("criterion", ["excess", "reference", "entropy", "reference_and_entropy", "random", "loss"])
@pytest.mark.parametrize("scope", SCOPES)
def test_k_1_is_causal_language_modeling(scope: Scope, criterion: Criterion) -> None:
    batches = [Rows.drawn(seed) for seed in range(2)]
    causal, theirs = choose(CausalObjective(), batches)
    selective, ours = choose(SelectiveObjective(SelectionRule(KeepRatio(Decimal(1)), criterion, scope)), batches)
    assert (
        int(denominator_of(causal))
        == int(denominator_of(selective))
        == sum(int(part.targets.valid.sum()) for part in batches)
    )
    # The same kind of choice, so that the head does bit for bit the same.
    assert all(isinstance(choice, Every) for choice in (*causal.choices, *selective.choices))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_sequence_keeps_k_of_each_row() -> None:
    rows = Rows.drawn(0)
    plan, (selected,) = choose(SelectiveObjective(SelectionRule(KeepRatio(Decimal("0.5")), scope="sequence")), [rows])
    for row in range(3):
        valid = rows.targets.valid[row]
        assert int(selected[row].sum()) == (int(valid.sum()) + 1) // 2
        assert rows.excess[row][selected[row]].min() >= rows.excess[row][valid & ~selected[row]].max()
    assert int(denominator_of(plan)) == int(selected.sum())


def test_microbatch_keeps_k_of_each_micro_batch() -> None:
    batches = [Rows.drawn(seed) for seed in range(3)]
    plan, masks = choose(SelectiveObjective(SelectionRule(KeepRatio(Decimal("0.3")), scope="microbatch")), batches)
    counts = [int(mask.sum()) for mask in masks]
    assert counts == [int(Decimal("0.3") * int(part.targets.valid.sum()) + Decimal("0.5")) for part in batches]
    assert int(denominator_of(plan)) == sum(counts)


@st.composite
def steps(draw: st.DrawFn) -> Rows:
    """Sixteen rows of five targets: values that tie, are all equal or all negative, rows without a valid target."""
    values = draw(st.sampled_from([[-3.0, -1.0, -0.5], [0.25], [0.0, 1e-30, 2.0, 3.5], [-2.0, 0.0, 1.0, 2.0, 4.0]]))
    values = draw(st.lists(st.sampled_from(values), min_size=80, max_size=80))
    density = draw(st.sampled_from([0.0, 0.1, 0.9, 1.0]))
    valid = torch.rand(16, 5, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) < density
    # Powers of two and small numbers: losses less reference losses are the values exactly.
    ref_loss = torch.full((16, 5), 4.0)
    keys = target_keys(torch.randperm(1000, generator=torch.Generator().manual_seed(1))[:16], 0, 5)
    losses = torch.tensor(values).view(16, 5) + ref_loss
    return Rows(Targets(valid, keys, {"ref_loss": ref_loss}), losses)


@settings(deadline=None)
@given(
    steps(),
    st.sampled_from(["0.01", "0.3", "0.6", "0.99"]),
    st.sampled_from(list(product((1, 2, 4), (1, 2, 4)))),
)
def test_every_division_selects_the_set_of_a_naive_sort(step: Rows, keep_ratio: str, division: tuple[int, int]) -> None:
    ranks, micro_steps = division
    ratio = Decimal(keep_ratio)
    valid = step.targets.valid
    count = int(ratio * int(valid.sum()) + Decimal("0.5"))
    ranked = sorted(zip((-step.excess[valid].double()).tolist(), step.targets.keys[valid].tolist(), strict=True))
    expected = {key for _, key in ranked[:count]}

    def rank(number: int, all_reduce_sum: AllReduceSum) -> tuple[int, list[int]]:
        mine = step[slice(number, None, ranks)]
        parts = [mine[slice(part, None, micro_steps)] for part in range(micro_steps)]
        objective = SelectiveObjective(SelectionRule(KeepRatio(ratio)))
        plan, masks = choose(objective, parts, all_reduce_sum)
        keys = [part.targets.keys[mask].tolist() for part, mask in zip(parts, masks, strict=True)]
        return int(denominator_of(plan)), [key for part in keys for key in part]

    found = run_together(ranks, rank)
    assert {denominator for denominator, _ in found} == {count}
    selected = [key for _, keys in found for key in keys]
    assert len(selected) == count
    assert set(selected) == expected


RULES = {
    **{scope: SelectionRule(K60, scope=scope) for scope in SCOPES},
    "running": SelectionRule(K60, mode="running"),
    "loss": SelectionRule(K60, criterion="loss"),
}


@pytest.mark.parametrize(
    ("value", "rule", "micro_steps"),
    [  # every pair of two of them
        (value, rule, 1 + (first + second) % 2)
        for first, value in enumerate([float("nan"), float("inf"), -float("inf")])
        for second, rule in enumerate(RULES.values())
    ],
)
def test_what_cannot_be_ranked_stops_every_rank_and_is_named(
    value: float, rule: SelectionRule, micro_steps: int
) -> None:
    sound, rows = Rows.drawn(2, rows=8), Rows.drawn(3, rows=8)
    place = int(rows.targets.valid[:, 4].nonzero()[0, 0])
    rows.losses[place, 4] = value

    def rank(number: int, all_reduce_sum: AllReduceSum) -> list[int]:
        """The dataset's rows that this rank names, in a step after a sound one; every rank has to stop."""

        def parts_of(step: Rows) -> list[Rows]:
            mine = step[slice(4 * number, 4 * number + 4)]
            return [mine[slice(part, None, micro_steps)] for part in range(micro_steps)]

        objective = SelectiveObjective(rule)
        choose(objective, parts_of(sound), all_reduce_sum)
        parts = parts_of(rows)
        try:
            targets = joined([part.targets for part in parts])
            plan = objective.plan_step(
                targets, micro_steps, START, lambda number: Measured(parts[number].losses), all_reduce_sum
            )
        except NonFiniteCriterion as error:
            keys = torch.cat([part.targets.keys.flatten() for part in parts])
            return row_of(keys[error.places]).tolist()
        named, stops = [], 0
        for part, choice in zip(parts, plan.choices, strict=True):
            assert not isinstance(choice, Every | Known)
            selected = choice(part.losses.flatten())
            stops += int(selected.stop)
            named += row_of(part.targets.keys.flatten()[selected.non_finite]).tolist()
        assert stops == 1
        return named

    named = run_together(2, rank)
    assert named == ([[300 + place], []] if place < 4 else [[], [300 + place]])


def test_what_is_no_target_may_have_any_score() -> None:
    rows = Rows.drawn(0)
    losses = torch.where(rows.targets.valid, rows.losses, float("nan"))
    _, (mask,) = choose(SelectiveObjective(SelectionRule(K60)), [replace(rows, losses=losses)])
    assert not (mask & ~rows.targets.valid).any()


@pytest.mark.parametrize("scope", SCOPES)
def test_an_invalid_target_is_never_selected_however_large_its_excess(scope: Scope) -> None:
    rows = Rows.drawn(0)
    losses = torch.where(rows.targets.valid, rows.losses, 1000.0)
    rule = SelectionRule(KeepRatio(Decimal("0.99")), scope=scope)
    _, (mask,) = choose(SelectiveObjective(rule), [replace(rows, losses=losses)])
    assert not (mask & ~rows.targets.valid).any()


@pytest.mark.parametrize("criterion", ["excess", "reference", "reference_and_entropy"])
@pytest.mark.parametrize("scope", SCOPES)
def test_a_step_without_targets_selects_nothing(scope: Scope, criterion: Criterion) -> None:
    rows = Rows.drawn(0)
    empty = replace(rows, targets=replace(rows.targets, valid=torch.zeros_like(rows.targets.valid)))
    plan, (mask,) = choose(SelectiveObjective(SelectionRule(K60, criterion, scope)), [empty])
    assert int(denominator_of(plan)) == 0
    assert not mask.any()


@pytest.mark.parametrize("scope", SCOPES)
def test_static_scores_are_known_before_the_forward_pass(scope: Scope) -> None:
    rows = Rows.drawn(4, rows=6)
    ref_loss, ref_entropy, valid = (
        rows.targets.column("ref_loss"),
        rows.targets.column("ref_entropy"),
        rows.targets.valid,
    )
    masks = {}
    for criterion, values in (("reference", -ref_loss), ("entropy", -ref_entropy)):
        objective = SelectiveObjective(SelectionRule(K60, criterion, scope))
        plan = objective.plan_step(rows.targets, 1, START, never_measured, on_this_rank_alone)
        (choice,) = plan.choices
        assert isinstance(choice, Known)
        masks[criterion] = choice.mask.view_as(valid)
        assert torch.equal(choice.mask.nonzero().squeeze(1), choice.rows)
        assert torch.equal((valid.flatten() & ~choice.mask).nonzero().squeeze(1), choice.rest)
        groups = range(6) if scope == "sequence" else [slice(None)]
        for group in groups:
            chosen, left = masks[criterion][group], valid[group] & ~masks[criterion][group]
            assert values[group][chosen].min() >= values[group][left].max()
        assert int(denominator_of(plan)) == int(choice.mask.sum())
    objective = SelectiveObjective(SelectionRule(K60, "reference_and_entropy", scope, measure_rest=False))
    plan = objective.plan_step(rows.targets, 1, START, never_measured, on_this_rank_alone)
    (choice,) = plan.choices
    assert isinstance(choice, Known)
    assert torch.equal(choice.mask.view_as(valid), masks["reference"] & masks["entropy"])
    assert int(denominator_of(plan)) == int(choice.mask.sum()) < int(valid.sum() * 0.6)
    assert len(choice.rest) == 0


def test_chance_differs_by_step_and_seed_and_not_by_division() -> None:
    rows = Rows.drawn(1, rows=8, length=64)

    def selected(seed: int, step: int, parts: int) -> set[int]:
        objective = SelectiveObjective(SelectionRule(K60, "random", seed=seed))
        micro_batches = [rows[slice(part, None, parts)] for part in range(parts)]
        _, masks = choose(objective, micro_batches, moment=Moment(step, 0))
        keys = [part.targets.keys[mask].tolist() for part, mask in zip(micro_batches, masks, strict=True)]
        return {key for part in keys for key in part}

    assert selected(0, 1, 1) == selected(0, 1, 4)
    count = len(selected(0, 1, 1))
    assert count == int(Decimal("0.6") * int(rows.targets.valid.sum()) + Decimal("0.5"))
    for other in (selected(0, 2, 1), selected(1, 1, 1)):
        # 60% of those chosen once are chosen again by chance; 480 targets make 11 of them one standard deviation.
        assert abs(len(selected(0, 1, 1) & other) - 0.6 * count) < 50


@pytest.mark.parametrize("mode", ["exact", "running"])
def test_a_cap_keeps_out_what_the_reference_finds_too_hard(mode: str) -> None:
    rows = Rows.drawn(2, rows=8)
    too_hard = rows.targets.column("ref_loss") > 1.0
    rule = SelectionRule(K60, max_ref_loss=1.0, mode=mode)  # type: ignore[arg-type]
    plan, (mask,) = choose(SelectiveObjective(rule), [rows])
    # Fewer are eligible than K: their number is K.
    assert torch.equal(mask, rows.targets.valid & ~too_hard)
    assert int(denominator_of(plan)) == int(mask.sum()) < 0.6 * int(rows.targets.valid.sum())


def test_a_forecast_selects_nearly_all_where_a_cap_leaves_fewer_than_k() -> None:
    objective = SelectiveObjective(SelectionRule(K60, max_ref_loss=1.0, mode="running"))
    eligible_count = missed = 0
    for step in range(1, 13):
        rows = Rows.drawn(step, rows=64)
        eligible = rows.targets.valid & (rows.targets.column("ref_loss") <= 1.0)
        _, (mask,) = choose(objective, [rows], moment=Moment(step, 0))
        assert not (mask & ~eligible).any()
        eligible_count += int(eligible.sum())
        missed += int((eligible & ~mask).sum())
    assert missed < 0.01 * eligible_count


def test_a_cap_does_not_hide_a_reference_loss_that_is_nan() -> None:
    rows = Rows.drawn(2, rows=8)
    rows.targets.column("ref_loss")[tuple(rows.targets.valid.nonzero()[0].tolist())] = float("nan")
    with pytest.raises(NonFiniteCriterion):
        choose(SelectiveObjective(SelectionRule(K60, "reference", max_ref_loss=1.0)), [rows])


def test_the_ratio_falls_from_1_over_its_warm_up() -> None:
    ratio = KeepRatio(Decimal("0.6"), warmup_tokens=1000)
    assert [ratio.at(tokens) for tokens in (0, 250, 999, 1000, 5000)] == [
        Decimal("1"),
        Decimal("0.9"),
        Decimal("0.6004"),
        Decimal("0.6"),
        Decimal("0.6"),
    ]
    assert ratio.at(333) == Decimal("0.866800")
    rows = Rows.drawn(0, rows=20)
    valid = int(rows.targets.valid.sum())
    plan, _ = choose(SelectiveObjective(SelectionRule(ratio)), [rows], moment=Moment(2, 500))
    assert int(denominator_of(plan)) == int(Decimal("0.8") * valid + Decimal("0.5"))


def test_the_ratio_follows_the_points_of_a_schedule() -> None:
    """Constant before the first point, linear between two, a jump at 300, constant after the last."""
    points = ((100, Decimal("0.9")), (200, Decimal("0.5")), (300, Decimal("0.8")), (300, Decimal("0.2")))
    ratio = KeepRatio(Decimal("0.2"), points=points)
    found = {tokens: ratio.at(tokens) for tokens in (0, 100, 150, 200, 250, 299, 300, 10_000)}
    assert found == {
        0: Decimal("0.9"),
        100: Decimal("0.9"),
        150: Decimal("0.7"),
        200: Decimal("0.5"),
        250: Decimal("0.65"),
        299: Decimal("0.797"),
        300: Decimal("0.2"),
        10_000: Decimal("0.2"),
    }
    assert ratio.extremes == (300, 99)
    jump = KeepRatio(Decimal("0.2"), points=((0, Decimal("0.3")), (300, Decimal("0.8")), (300, Decimal("0.2"))))
    assert jump.extremes == (300, 299)


@given(st.integers(1, 10**12), st.integers(0, 10**12), st.sampled_from(["0.1", "0.6", "0.123456789"]))
def test_a_warm_up_is_a_schedule_of_two_points(warmup: int, tokens: int, keep_ratio: str) -> None:
    target = Decimal(keep_ratio)
    points = ((0, Decimal(1)), (warmup, target))
    assert KeepRatio(target, points=points).at(tokens) == KeepRatio(target, warmup_tokens=warmup).at(tokens)


def test_a_forecast_comes_of_the_steps_before_and_is_equal_on_all_ranks() -> None:
    rows = Rows.drawn(0, rows=8)
    for scope in SCOPES:

        def rank(number: int, all_reduce_sum: AllReduceSum) -> tuple[float, float]:
            objective = SelectiveObjective(SelectionRule(K60, scope=scope))  # noqa: B023
            mine = rows[slice(4 * number, 4 * number + 4)]
            first, _ = choose(objective, [mine], all_reduce_sum)
            assert first.choices[0].forecast is None  # type: ignore[union-attr]
            second, (mask,) = choose(objective, [mine], all_reduce_sum, Moment(2, 80))
            forecast = second.choices[0].forecast  # type: ignore[union-attr]
            assert forecast is not None
            margin = forecast.margin(mine.losses.flatten(), torch.arange(mine.losses.numel()))
            hits = ((margin > 0) == mask.flatten()).double().mean()
            return float(margin[mine.targets.valid.flatten()][0] - mine.excess[mine.targets.valid][0]), float(hits)

        (one, hits), (other, _) = run_together(2, rank)
        assert one == pytest.approx(other, abs=1e-6)
        # The same rows again: all but those at the cut itself are forecast rightly, where one cut holds for all.
        assert hits > (0.97 if scope == "batch" else 0.7)
