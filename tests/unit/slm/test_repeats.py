"""Rows that come several times in a step: numbered over all ranks, selected exactly, whatever the layout."""

from collections import Counter
from decimal import Decimal
from functools import cache
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megaslm.slm.choice import HeadOutput
from megaslm.slm.criterion import Criterion
from megaslm.slm.keys import earlier_copies, row_of, target_keys
from megaslm.slm.measure import Measured
from megaslm.slm.objective import SelectiveObjective
from megaslm.slm.rule import KeepRatio, Moment, SelectionRule
from megaslm.slm.targets import Targets
from megaslm.slm.threshold import EXACT_STEPS
from megaslm.slm.topk import AllReduceSum
from tests.chosen import joined, output_of
from tests.threads import run_together

ROWS = 16
LENGTH = 5
LAYOUTS = [(1, 1), (1, 4), (2, 1), (2, 2), (4, 1)]
"""Ranks and micro-steps."""


def gathered(parts: list[Tensor], rank: int) -> Tensor:
    """What `earlier_copies` gives one of several ranks."""
    return earlier_copies(parts[rank], rank, lambda mine: torch.stack(parts))


@given(st.lists(st.integers(0, 5), min_size=ROWS, max_size=ROWS), st.sampled_from([1, 2, 4]))
def test_copies_are_counted_over_ranks(rows: list[int], ranks: int) -> None:
    parts = list(torch.tensor(rows).chunk(ranks))
    found = torch.cat([gathered(parts, rank) for rank in range(ranks)]).tolist()
    assert found == [rows[:place].count(row) for place, row in enumerate(rows)]


@cache
def values(row: int, salt: int) -> Tensor:
    """(L,) numbers of a row: powers of two and sums of few, so that ties are many and differences exact."""
    generator = torch.Generator().manual_seed(10 * row + salt)
    return torch.randint(0, 4, (LENGTH,), generator=generator).float() * 0.5


Places = Counter[tuple[int, int]]
"""How often each (row, position) is selected in a step."""


def select(
    rows: list[int], ranks: int, micro_steps: int, rule: SelectionRule, *, epoch: int = 0, steps: int = 2
) -> list[Places]:
    """What so many steps of these rows select."""

    def rank(number: int, all_reduce_sum: AllReduceSum) -> list[list[tuple[int, int]]]:
        mine = torch.tensor(rows).chunk(ranks)
        copies = gathered(list(mine), number)
        parts = list(zip(mine[number].chunk(micro_steps), copies.chunk(micro_steps), strict=True))
        objective = SelectiveObjective(rule)
        return [
            select_on_rank(objective, parts, Moment(step, 0), all_reduce_sum, epoch) for step in range(1, steps + 1)
        ]

    return [
        Counter(place for places in step for place in places) for step in zip(*run_together(ranks, rank), strict=True)
    ]


def select_on_rank(
    objective: SelectiveObjective,
    parts: list[tuple[Tensor, Tensor]],
    moment: Moment,
    all_reduce_sum: AllReduceSum,
    epoch: int,
) -> list[tuple[int, int]]:
    """The (row, position) that one rank selects of its micro-batches: rows, and how many copies come before each."""
    ref_loss, entropy, losses = (
        [torch.stack([values(row, salt) for row in part.tolist()]) for part, _ in parts] for salt in range(3)
    )
    targets = [
        Targets(
            torch.ones(len(part), LENGTH).bool(),
            target_keys(part, epoch + earlier, LENGTH),
            {"ref_loss": losses, "ref_entropy": entropies},
        )
        for (part, earlier), losses, entropies in zip(parts, ref_loss, entropy, strict=True)
    ]
    plan = objective.plan_step(
        joined(targets), len(targets), moment, lambda number: Measured(losses[number]), all_reduce_sum
    )
    selected: list[tuple[int, int]] = []
    outputs = [output_of(choice, loss) for choice, loss in zip(plan.choices, losses, strict=True)]
    for output, target in zip(outputs, targets, strict=True):
        rows = row_of(target.keys[output.mask]).tolist()
        selected += zip(rows, output.mask.nonzero()[:, 1].tolist(), strict=True)
    objective.end_step(plan, HeadOutput.of_step(outputs))
    return selected


STEPS = st.lists(st.integers(0, 6), min_size=ROWS, max_size=ROWS)
"""Sixteen rows out of seven: some come several times in any step."""


@settings(max_examples=10, deadline=None)
@given(STEPS, st.sampled_from(["0.01", "0.3", "0.6", "0.99"]), st.sampled_from([0, 255, 256]))
@pytest.mark.parametrize("criterion", ["excess", "loss", "reference", "entropy", "random"])
def test_exactly_k_are_selected_and_the_same_in_every_layout(
    criterion: Criterion, rows: list[int], keep_ratio: str, epoch: int
) -> None:
    ratio = Decimal(keep_ratio)
    rule = SelectionRule(KeepRatio(ratio), criterion)
    found = [select(rows, ranks, micro_steps, rule, epoch=epoch) for ranks, micro_steps in LAYOUTS]
    assert [step.total() for step in found[0]] == [int(ratio * ROWS * LENGTH + Decimal("0.5"))] * 2
    assert all(other == found[0] for other in found[1:])


@settings(max_examples=10, deadline=None)
@given(STEPS)
def test_a_running_threshold_tells_copies_apart(rows: list[int]) -> None:
    rule = SelectionRule(KeepRatio(Decimal("0.6")), mode="running")
    found = [select(rows, ranks, micro_steps, rule, steps=EXACT_STEPS + 1) for ranks, micro_steps in LAYOUTS]
    # The last is the same step again, cut where the exact ones were: it selects just as many.
    assert [step.total() for step in found[0]] == [48] * (EXACT_STEPS + 1)
    assert all(other == found[0] for other in found[1:])


@pytest.mark.parametrize("criterion", ["excess", "random"])
@pytest.mark.parametrize("scope", ["sequence", "microbatch"])
def test_smaller_scopes_keep_k_of_each_group(scope: Literal["sequence", "microbatch"], criterion: Criterion) -> None:
    rows = [3, 3, 1, 3, 5, 1, 0, 3] * 2
    (found, _) = select(rows, 1, 4, SelectionRule(KeepRatio(Decimal("0.6")), criterion, scope))
    # 3 of the 5 targets of each row; 12 of the 20 of each micro-batch.
    assert found.total() == 48
    if scope == "sequence" and criterion == "excess":
        for row, copies in Counter(rows).items():
            assert {count for (mine, _), count in found.items() if mine == row} == {copies}


def test_chance_is_drawn_for_each_copy() -> None:
    for found in select([4] * ROWS, 2, 1, SelectionRule(KeepRatio(Decimal("0.5")), "random")):
        # Were copies drawn together, each place would be selected always or never.
        assert found.total() == ROWS * LENGTH // 2
        assert all(0 < found[4, position] < ROWS for position in range(LENGTH))
