"""What static values select, and that a mask selects the same as ranking in every step."""

from collections.abc import Sequence
from decimal import Decimal

import pytest
import torch
from torch import Tensor

from megaslm.slm.choice import Known
from megaslm.slm.keys import target_keys
from megaslm.slm.measure import Measured
from megaslm.slm.objective import SelectiveObjective
from megaslm.slm.rule import KeepRatio, Moment, SelectionRule, StepPlan
from megaslm.slm.selection import StaticRule, select_static
from megaslm.slm.targets import Targets
from megaslm.slm.topk import AllReduceSum, on_this_rank_alone
from tests.chosen import denominator_of, joined
from tests.threads import run_together

RANKINGS: list[StaticRule] = ["reference", "entropy", "reference_and_entropy"]
ROWS, LENGTH = 12, 21


def drawn_targets(seed: int = 0, first_row: int = 0) -> Targets:
    """Rows with many equal values, a tenth of their targets invalid, one row without any target."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(ROWS, LENGTH, generator=generator) < 0.9
    valid[3] = False
    losses, entropies = torch.randint(0, 8, (2, ROWS, LENGTH), generator=generator) / 2
    return Targets(
        valid, target_keys(first_row + torch.arange(ROWS), 0, LENGTH), {"ref_loss": losses, "ref_entropy": entropies}
    )


def top_of_row(values: Tensor, valid: Tensor, eligible: Tensor, ratio: Decimal) -> set[int]:
    """The places of smallest value in a row, by sorting: among equal ones the first."""
    count = int(ratio * int(valid.sum()) + Decimal("0.5"))
    places = eligible.nonzero().squeeze(1).tolist()
    return set(sorted(places, key=lambda place: (float(values[place]), place))[:count])


@pytest.mark.parametrize(
    ("ranking", "ratio", "max_ref_loss"),
    [  # every pair of two of them
        (ranking, ratio, (None, 1.5)[(first + second) % 2])
        for first, ranking in enumerate(RANKINGS)
        for second, ratio in enumerate(["0.01", "0.6", "1"])
    ],
)
def test_each_row_keeps_what_a_sort_keeps(ranking: StaticRule, ratio: str, max_ref_loss: float | None) -> None:
    targets = drawn_targets()
    losses, entropies = targets.column("ref_loss"), targets.column("ref_entropy")
    chosen = select_static(ranking, targets, Decimal(ratio), max_ref_loss)
    ranked = {"reference": [losses], "entropy": [entropies], "reference_and_entropy": [losses, entropies]}[ranking]
    for row in range(ROWS):
        valid = targets.valid[row]
        eligible = valid if max_ref_loss is None else valid & (losses[row] <= max_ref_loss)
        tops = [top_of_row(values[row], valid, eligible, Decimal(ratio)) for values in ranked]
        assert set(chosen.mask[row].nonzero().squeeze(1).tolist()) == set.intersection(*tops)
    assert torch.equal(chosen.count, chosen.mask.sum(1))
    assert not chosen.unsortable.any()


@pytest.mark.parametrize("ranking", RANKINGS)
def test_what_cannot_be_ranked_is_named(ranking: StaticRule) -> None:
    targets = drawn_targets()
    place = tuple(targets.valid.nonzero()[5].tolist())
    for column in (targets.column("ref_loss"), targets.column("ref_entropy")):
        column[place] = float("nan")
        column[~targets.valid] = float("nan")
    assert select_static(ranking, targets, Decimal("0.6"), None).unsortable.nonzero().tolist() == [list(place)]


def plan(rule: SelectionRule, parts: Sequence[Targets], all_reduce_sum: AllReduceSum = on_this_rank_alone) -> StepPlan:
    def never(number: int) -> Measured:
        raise AssertionError("a static criterion needs no losses")

    return SelectiveObjective(rule).plan_step(joined(parts), len(parts), Moment(1, 0), never, all_reduce_sum)


def assert_alike(one: StepPlan, other: StepPlan) -> None:
    assert torch.equal(denominator_of(one), denominator_of(other))
    assert denominator_of(one).dtype == denominator_of(other).dtype
    for ours, theirs in zip(one.choices, other.choices, strict=True):
        assert isinstance(ours, Known)
        assert isinstance(theirs, Known)
        assert torch.equal(ours.mask, theirs.mask)
        assert torch.equal(ours.rows, theirs.rows)
        assert torch.equal(ours.rest, theirs.rest)


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("measure_rest", [True, False])
def test_a_step_by_masks_is_the_step_by_scores(ranking: StaticRule, measure_rest: bool) -> None:
    rule = SelectionRule(KeepRatio(Decimal("0.6")), ranking, "sequence", max_ref_loss=2.0, measure_rest=measure_rest)
    micro_batches = [drawn_targets(seed) for seed in range(4)]
    masks = [select_static(ranking, part, Decimal("0.6"), 2.0).mask for part in micro_batches]
    masked = [
        Targets(part.valid, part.keys, {"selected": mask}) for part, mask in zip(micro_batches, masks, strict=True)
    ]
    assert_alike(plan(rule, masked), plan(rule, micro_batches))

    def rank(number: int, all_reduce_sum: AllReduceSum) -> tuple[StepPlan, StepPlan]:
        mine = slice(2 * number, 2 * number + 2)
        return plan(rule, masked[mine], all_reduce_sum), plan(rule, micro_batches[mine], all_reduce_sum)

    for by_mask, by_score in run_together(2, rank):
        assert_alike(by_mask, by_score)
        assert int(denominator_of(by_mask)) == sum(int(mask.sum()) for mask in masks)


@pytest.mark.parametrize("ranking", RANKINGS)
def test_all_ranks_divide_by_what_all_of_them_selected(ranking: StaticRule) -> None:
    micro_batches = [drawn_targets(number, number * ROWS) for number in range(4)]

    def rank(number: int, all_reduce_sum: AllReduceSum) -> StepPlan:
        rule = SelectionRule(KeepRatio(Decimal("0.6")), ranking, "batch")
        return plan(rule, micro_batches[2 * number : 2 * number + 2], all_reduce_sum)

    plans = run_together(2, rank)
    selected = sum(int(choice.mask.sum()) for each in plans for choice in each.choices)  # type: ignore[union-attr]
    assert [int(denominator_of(each)) for each in plans] == [selected, selected]


def test_a_mask_selects_no_invalid_target_and_has_no_say_in_other_scores() -> None:
    targets = drawn_targets()
    everything = Targets(targets.valid, targets.keys, {"selected": torch.ones_like(targets.valid)})
    by_mask = plan(SelectionRule(KeepRatio(Decimal("0.6")), "reference", "sequence"), [everything])
    assert torch.equal(by_mask.choices[0].mask.view_as(targets.valid), targets.valid)  # type: ignore[union-attr]
    by_chance = plan(SelectionRule(KeepRatio(Decimal("0.6")), "random", "sequence"), [everything])
    assert int(denominator_of(by_chance)) < int(targets.valid.sum())
