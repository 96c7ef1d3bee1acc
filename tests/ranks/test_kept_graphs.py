"""Kept graphs against a second forward pass: equal selections and equal weights, bit for bit."""

from dataclasses import asdict
from itertools import product

import pytest
import torch

from tests.pairwise import pairwise
from tests.rank_pool import RankPool
from tests.ranks.kept_graphs_worker import BAD_STEP, STEPS, Case, train_both_ways

PARAMETERS_OF_A_LAYER = 9

CASES = [
    Case(stage=3),
    Case(stage=3, recompute="full", tied=True, isolation=False),
    Case(stage=0, tied=True, recompute="full"),
    Case(stage=3, recompute="selective"),
    Case(stage=1, precision="bf16"),
    Case(stage=2, offload=True, recompute="full"),
    Case(stage=3, precision="bf16"),
    Case(stage=3, offload=True),
    Case(stage=3, weights="entropy"),
    Case(stage=2, weights="signed"),
    Case(stage=3, recompute="full", filtered_layers=2),
    Case(stage=2, recompute="full", filtered_layers=1),
]
ON_RANKS = list(product(CASES, (1, 2)))
QUICK = [(case, 2) for case in pairwise(CASES, asdict)] + [(case, 1) for case in pairwise(CASES, asdict, together=1)]


def id_of(case: Case) -> str:
    return "-".join(f"{name}={value}" for name, value in asdict(case).items() if value)


@pytest.mark.parametrize(
    ("case", "world_size"),
    [
        pytest.param(*one, id=f"{id_of(one[0])}-{one[1]}", marks=[] if one in QUICK else pytest.mark.slow)
        for one in ON_RANKS
    ],
)
def test_both_ways_learn_the_same(ranks: RankPool, lone_rank: RankPool, case: Case, world_size: int) -> None:
    for kept, second in (lone_rank, ranks)[world_size - 1].run(train_both_ways, case):
        assert kept.skipped == second.skipped == [number == BAD_STEP for number in range(1, STEPS + 1)]
        for name in ("sums", "thresholds", "norms"):
            for one, other in zip(getattr(kept, name), getattr(second, name), strict=True):
                assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1)), (name, one, other)
        assert {name for name in second.weights if not torch.equal(kept.weights[name], second.weights[name])} == set()
        assert kept.gathered == second.gathered
        assert (kept.second_pass_ratios, second.second_pass_ratios) == ([0.0] * STEPS, [1.0] * STEPS)
        assert kept.graphs == [0] * STEPS
        assert kept.gathers_ahead == second.gathers_ahead == ([True] * STEPS if case.stage == 3 else [])
        if case.stage == 3 and not case.persistent_parameters:
            # Stage 3 gathers a decoder layer as a whole. In its backward pass it is there, and no other layer is.
            assert set(kept.gathered) == {PARAMETERS_OF_A_LAYER}
