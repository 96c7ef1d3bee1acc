from decimal import Decimal
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megaslm.slm.topk import (
    AllReduceSum,
    find_threshold,
    keep_count,
    on_this_rank_alone,
    ordered_image,
    select_top,
    value_of_image,
)
from tests.threads import run_together

few_values = st.sampled_from([-3.5, -0.0, 0.0, 1e-30, 0.25, 2.0])
any_values = st.floats(width=32, allow_nan=False, allow_infinity=False)
negative_values = st.floats(max_value=-0.5, width=32, allow_nan=False, allow_infinity=False)
keys_of_rows = st.integers(0, 2**56 - 1)


def by_sorting(values: Tensor, keys: Tensor, eligible: Tensor, count: int) -> set[int]:
    """The keys of the naive selection: sorted by float64 score, then key."""
    candidates = [
        (-float(score), int(key)) for score, key, ok in zip(values.double(), keys, eligible, strict=True) if ok
    ]
    return {key for _, key in sorted(candidates)[:count]}


def select_over_ranks(values: list[Tensor], keys: list[Tensor], eligible: list[Tensor], count: int) -> set[int]:
    """The keys that all ranks select together."""

    def rank(number: int, all_reduce_sum: AllReduceSum) -> tuple[set[int], int]:
        top = select_top(
            values[number][None], keys[number][None], eligible[number][None], torch.tensor([count]), all_reduce_sum
        )
        return set(keys[number][top.mask[0]].tolist()), int(top.threshold)

    selected, thresholds = zip(*run_together(len(values), rank), strict=True)
    assert sum(map(len, selected)) == len(set().union(*selected))
    assert len(set(thresholds)) == 1
    return set().union(*selected)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.lists(st.tuples(st.one_of(few_values, any_values), st.booleans()), min_size=1, max_size=40),
        st.lists(st.tuples(negative_values, st.booleans()), min_size=1, max_size=40),
    ),
    st.data(),
)
def test_selects_what_sorting_selects(elements: list[tuple[float, bool]], data: st.DataObject) -> None:
    values = torch.tensor([score for score, _ in elements], dtype=torch.float32)
    eligible = torch.tensor([ok for _, ok in elements])
    some_keys = st.lists(keys_of_rows, min_size=len(elements), max_size=len(elements), unique=True)
    keys = torch.tensor(data.draw(some_keys))
    count = data.draw(st.integers(0, int(eligible.sum())))
    top = select_top(values[None], keys[None], eligible[None], torch.tensor([count]))
    mask = top.mask[0]
    assert int(mask.sum()) == count
    assert set(keys[mask].tolist()) == by_sorting(values, keys, eligible, count)
    if count:
        assert float(value_of_image(top.threshold)) == float(values[mask].min())


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("count", [0, 1, 37, 64])
def test_the_set_does_not_depend_on_the_ranks(ranks: int, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    values = torch.randint(-4, 4, (64,), generator=generator).float()
    keys = torch.randperm(64, generator=generator)
    eligible = torch.ones(64, dtype=torch.bool)
    found = select_over_ranks(list(values.chunk(ranks)), list(keys.chunk(ranks)), list(eligible.chunk(ranks)), count)
    assert found == by_sorting(values, keys, eligible, count)


def test_a_rank_without_eligible_targets_takes_part() -> None:
    values = [torch.tensor([9.0, 8.0]), torch.tensor([1.0, 2.0])]
    keys = [torch.tensor([0, 1]), torch.tensor([2, 3])]
    eligible = [torch.tensor([False, False]), torch.tensor([True, True])]
    assert select_over_ranks(values, keys, eligible, 1) == {3}


def test_all_equal_scores_go_to_the_lowest_keys() -> None:
    keys = torch.tensor([[5, 1, 9, 0, 7]])
    mask = select_top(torch.full((1, 5), -2.0), keys, torch.ones(1, 5, dtype=torch.bool), torch.tensor([3])).mask
    assert sorted(keys[mask].tolist()) == [0, 1, 5]


def test_groups_are_independent() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [30.0, 20.0, 10.0], [5.0, 5.0, 5.0]])
    keys = torch.arange(9).view(3, 3)
    counts = torch.tensor([1, 2, 0])
    mask = select_top(values, keys, torch.ones(3, 3, dtype=torch.bool), counts).mask
    assert mask.tolist() == [[False, False, True], [True, True, False], [False, False, False]]


def test_more_than_there_are_selects_all_eligible() -> None:
    eligible = torch.tensor([[True, False, True]])
    mask = select_top(torch.zeros(1, 3), torch.arange(3)[None], eligible, torch.tensor([7])).mask
    assert mask.tolist() == eligible.tolist()


def test_a_selection_moves_a_few_kilobytes() -> None:
    moved: list[Tensor] = []

    def all_reduce_sum(tensor: Tensor) -> Tensor:
        moved.append(tensor)
        return tensor

    values = torch.randn(1, 10_000)
    select_top(values, torch.arange(10_000)[None], values < 2.0, torch.tensor([6000]), all_reduce_sum)
    assert len(moved) == 11
    assert sum(tensor.nbytes for tensor in moved) == 11 * 256 * 4


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=30), st.data())
def test_the_cut_is_the_element_of_its_rank(values: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values)))
    everything = torch.ones(1, len(values), dtype=torch.bool)
    cut, left = find_threshold(torch.tensor([values]), 63, everything, torch.tensor([count]), on_this_rank_alone)
    assert int(cut) == sorted(values, reverse=True)[count - 1]
    assert int(left) == count - sum(value > int(cut) for value in values)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=20))
def test_images_are_ordered_as_the_scores_are_and_give_them_back(values: list[float]) -> None:
    values = torch.tensor(values, dtype=torch.float32)
    images = ordered_image(values)
    assert ((values[:, None] < values[None]) == (images[:, None] < images[None])).all()
    assert ((images >= 0) & (images < 2**32)).all()
    assert (value_of_image(images) == values).all()


@given(st.integers(0, 10**9), st.decimals("0.0001", 1, places=4))
def test_keep_count_rounds_half_up_exactly(target_count: int, keep_ratio: Decimal) -> None:
    exact = Fraction(keep_ratio) * target_count + Fraction(1, 2)
    assert int(keep_count(torch.tensor(target_count), keep_ratio)) == exact.numerator // exact.denominator


def test_keep_count_takes_the_decimal_at_its_word() -> None:
    # In binary floating point 0.15 · 10 + 0.5 is below 2.
    assert int(keep_count(torch.tensor(10), Decimal("0.15"))) == 2
