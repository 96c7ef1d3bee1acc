"""Few cases of many, in which any two values meet that meet in some of the many."""

from collections.abc import Callable, Hashable, Sequence
from itertools import combinations
from typing import TypeVar

T = TypeVar("T")
Pair = frozenset[tuple[str, Hashable]]


def pairs_of(values: dict[str, Hashable], together: int = 2) -> set[Pair]:
    """Every two, or so many, of a case's values, each with the name of what it is a value of."""
    return {frozenset(pair) for pair in combinations(values.items(), together)}


def pairwise(cases: Sequence[T], values: Callable[[T], dict[str, Hashable]], *, together: int = 2) -> list[T]:
    """Cases in which every pair occurs that occurs in all of them; each in its turn adds the most new pairs.

    With `together` = 1 every single value occurs. Not the fewest there are, but near them: none can be left out. What
    cannot go together need not be told: it is in none of the cases.
    """
    pairs = [pairs_of(values(case), together) for case in cases]
    missing = set[Pair]().union(*pairs)
    chosen: list[int] = []
    while missing:
        chosen.append(max(range(len(cases)), key=lambda number: len(pairs[number] & missing)))
        missing -= pairs[chosen[-1]]
    for number in list(chosen):
        # What an early case added may since be in later ones.
        others = set[Pair]().union(*(pairs[other] for other in chosen if other != number))
        if pairs[number] <= others:
            chosen.remove(number)
    return [cases[number] for number in sorted(chosen)]
