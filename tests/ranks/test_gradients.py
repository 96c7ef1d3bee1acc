"""Gradient equality: ZeRO on 1 and 2 ranks against plain PyTorch in float64 over the whole batch."""

from collections.abc import Hashable
from dataclasses import asdict
from itertools import product

import pytest

from tests.pairwise import pairwise
from tests.rank_pool import RankPool
from tests.ranks.gradient_cases import ONE_METHOD_EACH, Case, every_case
from tests.ranks.gradient_definition import Definition
from tests.ranks.gradient_worker import gradients

CASES = every_case()
ON_RANKS = list(product(CASES, (1, 2)))
# To trace layers takes ten times as long as all else of a case: on two ranks those that recompute, on one the others.
ON_TWO = [case for case in CASES if not (case.compiled and case.recompute == "none")]
ON_ONE = [case for case in CASES if not (case.compiled and case.recompute != "none")]
TOP = {
    world_size: [case for case in cases if not (case.selects_otherwise or case.weight != "hard" or case.distill)]
    for world_size, cases in ((1, ON_ONE), (2, ON_TWO))
}


def way_of(case: Case) -> dict[str, Hashable]:
    """What is selected, how its losses are known, and how the head computes."""
    return {
        "what": (case.policy, case.criterion == "student_entropy", case.apart),
        "way": (case.micro_steps, case.keeps_graphs),
        "method": case.method,
    }


QUICK = [(case, 2) for case in pairwise(TOP[2], asdict)] + [(case, 1) for case in pairwise(TOP[1], asdict, together=1)]
"""On two ranks any two values that meet in a case meet in one of these; on one rank each value is in one."""
QUICK_OTHERWISE = [(case, 2) for case in pairwise([case for case in ON_TWO if case.selects_otherwise], way_of)]
"""Each in each way that losses reach a choice. tests/unit/slm/test_policies.py has more pairs, without a model."""


def weighted_way_of(case: Case) -> dict[str, Hashable]:
    """The kind of the weights, and whether the choice is known before the losses, by them, or between the passes."""
    way = "known" if case.criterion in ONE_METHOD_EACH else "kept" if case.keeps_graphs else "by loss"
    return {"weight": case.weight, "way": way}


QUICK_WEIGHTED = [(case, 2) for case in pairwise([case for case in ON_TWO if case.weight != "hard"], weighted_way_of)]
"""Weights of each kind in each way. tests/unit/slm/test_weights.py has them in each method of the head."""


def distilled_way_of(case: Case) -> dict[str, Hashable]:
    """What has a divergence, in the ways of weights, and in each method where the choice is by loss."""
    way = weighted_way_of(case)["way"]
    return {"distill": case.distill, "way": (way, case.method if way == "by loss" else "")}


QUICK_DISTILLED = [(case, 2) for case in pairwise([case for case in ON_TWO if case.distill], distilled_way_of)]
IN_QUICK = [*QUICK, *QUICK_OTHERWISE, *QUICK_WEIGHTED, *QUICK_DISTILLED]


def id_of(case: Case) -> str:
    return "-".join(f"{name}={value}" for name, value in asdict(case).items() if value)


_DEFINITIONS: dict[object, Definition] = {}


def definition_of(case: Case) -> Definition:
    if case.data not in _DEFINITIONS:
        _DEFINITIONS[case.data] = Definition(case)
    return _DEFINITIONS[case.data]


@pytest.mark.parametrize(
    ("case", "world_size"),
    [
        pytest.param(*one, id=f"{id_of(one[0])}-{one[1]}", marks=[] if one in IN_QUICK else pytest.mark.slow)
        for one in ON_RANKS
    ],
)
def test_every_parameter_gets_the_gradient_of_the_definition(
    ranks: RankPool, lone_rank: RankPool, case: Case, world_size: int
) -> None:
    expected = definition_of(case).gradients(case, world_size)
    for found in (lone_rank, ranks)[world_size - 1].run(gradients, case):
        assert set(found) == set(expected)
        errors = {name: float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected}
        # The cache of a loss-dependent choice is kept in bf16.
        limit = 1e-3 if case.is_cached else 1e-5
        assert {name: error for name, error in errors.items() if not error < limit} == {}


def test_there_are_cases() -> None:
    assert len(CASES) > 150
    assert 20 < len(QUICK) < 50
    assert 8 < len(QUICK_OTHERWISE) < 16
    assert 10 < len(QUICK_WEIGHTED) < 20
    assert 10 < len(QUICK_DISTILLED) < 20
