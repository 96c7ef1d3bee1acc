"""The few cases of the tests' tables have every pair that the whole tables have."""

from itertools import product

from tests.pairwise import pairs_of, pairwise

Case = tuple[str, int, bool]
CASES: list[Case] = [case for case in product("abcdef", range(3), (False, True)) if case[:2] != ("a", 0)]


def values(case: Case) -> dict[str, str | int | bool]:
    return {"letter": case[0], "number": case[1], "is": case[2]}


def all_pairs(cases: list[Case]) -> set[object]:
    return {pair for case in cases for pair in pairs_of(values(case))}


def test_every_pair_is_there_in_few_cases() -> None:
    few = pairwise(CASES, values)
    assert all_pairs(few) == all_pairs(CASES)
    # Each letter meets three numbers but one: 17 pairs that no case has two of.
    assert 17 <= len(few) <= 20 < len(CASES)
    assert few == [case for case in CASES if case in few]


def test_every_value_is_there_in_fewer_cases() -> None:
    fewest = pairwise(CASES, values, together=1)
    assert {value for case in fewest for value in case} == {value for case in CASES for value in case}
    assert len(fewest) == 6


def test_no_case_is_left_that_the_others_stand_for() -> None:
    # The first one adds the most at first; in the end each other one has a value of its own, and together all of its.
    cases = [(1, 1, 1, 1), (1, 1, 2, 2), (2, 2, 1, 1), (3, 3, 1, 2)]
    assert pairwise(cases, lambda case: dict(enumerate(case)), together=1) == cases[1:]


def test_equal_values_of_unlike_names_are_not_one() -> None:
    assert len(pairs_of({"one": 1, "other": 1, "third": 1})) == 3
