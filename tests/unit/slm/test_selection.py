from decimal import Decimal
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megaslm.slm.selection import keep_count, select_top, target_keys

few_values = st.sampled_from([-3.5, -0.0, 0.0, 1e-30, 0.25, 2.0])
any_values = st.floats(width=32, allow_nan=False, allow_infinity=False)


def by_sorting(scores: Tensor, keys: Tensor, eligible: Tensor, count: int) -> set[int]:
    """The keys of the naive selection: sorted by float64 score, then key."""
    candidates = [
        (-float(score), int(key)) for score, key, ok in zip(scores.double(), keys, eligible, strict=True) if ok
    ]
    return {key for _, key in sorted(candidates)[:count]}


def select_over_ranks(scores: list[Tensor], keys: list[Tensor], eligible: list[Tensor], count: int) -> set[int]:
    """The keys that all ranks select together; the all-reduce is the sum over ranks that run in step."""
    import threading

    ranks = len(scores)
    barrier = threading.Barrier(ranks)
    shared: list[Tensor | None] = [None] * ranks
    selected: list[set[int]] = [set() for _ in range(ranks)]

    def rank(number: int) -> None:
        def all_reduce_sum(tensor: Tensor) -> Tensor:
            shared[number] = tensor
            barrier.wait()
            total = sum(part for part in shared if part is not None)
            barrier.wait()
            assert isinstance(total, Tensor)
            return total

        mask = select_top(
            scores[number][None], keys[number][None], eligible[number][None], torch.tensor([count]), all_reduce_sum
        )[0]
        selected[number] = set(keys[number][mask].tolist())

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(map(len, selected)) == len(set().union(*selected))
    return set().union(*selected)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.one_of(few_values, any_values), st.booleans()), min_size=1, max_size=40), st.data())
def test_selects_what_sorting_selects(elements: list[tuple[float, bool]], data: st.DataObject) -> None:
    scores = torch.tensor([score for score, _ in elements], dtype=torch.float32)
    eligible = torch.tensor([ok for _, ok in elements])
    some_keys = st.lists(st.integers(0, 2**63 - 1), min_size=len(elements), max_size=len(elements), unique=True)
    keys = torch.tensor(data.draw(some_keys))
    count = data.draw(st.integers(0, int(eligible.sum())))
    mask = select_top(scores[None], keys[None], eligible[None], torch.tensor([count]))[0]
    assert int(mask.sum()) == count
    assert set(keys[mask].tolist()) == by_sorting(scores, keys, eligible, count)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("count", [0, 1, 37, 64])
def test_the_set_does_not_depend_on_the_ranks(ranks: int, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    scores = torch.randint(-4, 4, (64,), generator=generator).float()
    keys = torch.randperm(64, generator=generator)
    eligible = torch.ones(64, dtype=torch.bool)
    found = select_over_ranks(list(scores.chunk(ranks)), list(keys.chunk(ranks)), list(eligible.chunk(ranks)), count)
    assert found == by_sorting(scores, keys, eligible, count)


def test_a_rank_without_eligible_targets_takes_part() -> None:
    scores = [torch.tensor([9.0, 8.0]), torch.tensor([1.0, 2.0])]
    keys = [torch.tensor([0, 1]), torch.tensor([2, 3])]
    eligible = [torch.tensor([False, False]), torch.tensor([True, True])]
    assert select_over_ranks(scores, keys, eligible, 1) == {3}


def test_all_equal_scores_go_to_the_lowest_keys() -> None:
    keys = torch.tensor([[5, 1, 9, 0, 7]])
    mask = select_top(torch.full((1, 5), -2.0), keys, torch.ones(1, 5, dtype=torch.bool), torch.tensor([3]))
    assert sorted(keys[mask].tolist()) == [0, 1, 5]


def test_groups_are_independent() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0], [30.0, 20.0, 10.0]])
    keys = torch.arange(6).view(2, 3)
    mask = select_top(scores, keys, torch.ones(2, 3, dtype=torch.bool), torch.tensor([1, 2]))
    assert mask.tolist() == [[False, False, True], [True, True, False]]


def test_more_than_there_are_selects_all_eligible() -> None:
    eligible = torch.tensor([[True, False, True]])
    mask = select_top(torch.zeros(1, 3), torch.arange(3)[None], eligible, torch.tensor([7]))
    assert mask.tolist() == eligible.tolist()


@given(st.integers(0, 10**9), st.decimals("0.0001", 1, places=4))
def test_keep_count_rounds_half_up_exactly(target_count: int, keep_ratio: Decimal) -> None:
    exact = Fraction(keep_ratio) * target_count + Fraction(1, 2)
    assert int(keep_count(torch.tensor(target_count), keep_ratio)) == exact.numerator // exact.denominator


def test_keep_count_takes_the_decimal_at_its_word() -> None:
    # In binary floating point 0.15 · 10 + 0.5 is below 2.
    assert int(keep_count(torch.tensor(10), Decimal("0.15"))) == 2


def test_keys_are_unique_and_ordered_by_row_visit_position() -> None:
    first = target_keys(torch.tensor([3, 4]), visit=0, seq_len=5)
    again = target_keys(torch.tensor([3, 4]), visit=1, seq_len=5)
    ordered = torch.cat([first[0], again[0], first[1], again[1]])
    assert (ordered.diff() > 0).all()
    assert int(target_keys(torch.tensor([2**32 - 1]), visit=400, seq_len=2**16).max()) < 2**63 - 1
