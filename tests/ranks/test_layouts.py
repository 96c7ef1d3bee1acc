"""Training does not depend on how a step's rows are laid out over ranks and micro-steps, up to floating point."""

from decimal import Decimal
from itertools import combinations
from typing import cast

import pytest
import torch
from torch import Tensor

from megaslm.slm.keys import row_of
from megaslm.slm.threshold import EXACT_STEPS
from tests.rank_pool import RankPool
from tests.ranks.layout_worker import Run, Step, steps_by, train_by_every_rule

VALUE_TOLERANCE = 1e-5
PARAMETER_TOLERANCE = 1e-4
KEEP_RATIO = Decimal("0.6")
LAYOUTS = ("1x4", "2x2", "1x1")
"""Ranks x micro-steps."""
RULES = ["batch exact", "batch running", "sequence", "repeated rows"]

SIZES = [(6, 1), pytest.param((10, 2), marks=pytest.mark.slow)]
"""Steps at most, and layers of the model."""

Layouts = dict[str, list[dict[str, Run]]]
"""Of each layout what its ranks recorded, by rule."""


@pytest.fixture(scope="module", params=SIZES, ids=str)
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    return cast(tuple[int, int], request.param)


@pytest.fixture(scope="module")
def layouts(ranks: RankPool, lone_rank: RankPool, size: tuple[int, int]) -> Layouts:
    pools = {"1": lone_rank, "2": ranks}
    return {layout: pools[layout[0]].run(train_by_every_rule, int(layout[2]), *size) for layout in LAYOUTS}


@pytest.mark.parametrize("rule", RULES)
def test_every_step_selects_the_same_targets(layouts: Layouts, rule: str) -> None:
    by_layout = {layout: global_steps(ranks, rule) for layout, ranks in layouts.items()}
    for one, other in combinations(LAYOUTS, 2):
        for number, steps in enumerate(zip(by_layout[one], by_layout[other], strict=True), start=1):
            differing = selected_by_one_alone(*steps)
            assert not differing, f"step {number}: {one} and {other} choose differently of keys {differing}"


@pytest.mark.parametrize("rule", RULES)
def test_every_parameter_ends_where_it_does_on_other_layouts(layouts: Layouts, rule: str) -> None:
    for one, other in combinations(LAYOUTS, 2):
        distances = parameter_distances(layouts[one][0][rule]["after"], layouts[other][0][rule]["after"])
        assert {name: far for name, far in distances.items() if not far < PARAMETER_TOLERANCE} == {}, (one, other)


@pytest.mark.parametrize("rule", RULES)
def test_there_was_something_to_tell_apart(layouts: Layouts, size: tuple[int, int], rule: str) -> None:
    """Every step left targets out, and every parameter moved by far more than layouts may differ."""
    run = layouts["1x4"][0][rule]
    assert len(run["steps"]) == steps_by(rule, size[0])
    assert all(0.4 < step["selected"].double().mean() < 0.8 for step in run["steps"])
    moved = parameter_distances(run["before"], run["after"])
    assert {name: far for name, far in moved.items() if far < 50 * PARAMETER_TOLERANCE} == {}


def test_of_repeated_rows_exactly_k_targets_are_selected(layouts: Layouts) -> None:
    for layout, ranks in layouts.items():
        for step in global_steps(ranks, "repeated rows"):
            assert len(step["keys"].unique()) == len(step["keys"])
            assert len(row_of(step["keys"]).unique()) == 4
            count = int(KEEP_RATIO * len(step["keys"]) + Decimal("0.5"))
            assert int(step["selected"].sum()) == count, layout


def test_a_threshold_did_choose(layouts: Layouts) -> None:
    """After the exact first steps: it keeps K on average alone."""
    exact, running = (
        [int(step["selected"].sum()) for step in layouts["1x4"][0][rule]["steps"]]
        for rule in ("batch exact", "batch running")
    )
    assert running[:EXACT_STEPS] == exact[:EXACT_STEPS]
    assert running[EXACT_STEPS:] != exact[EXACT_STEPS:]


def test_the_scope_microbatch_does_depend_on_the_layout(layouts: Layouts) -> None:
    """As its documentation says; and so the comparison of layouts can tell."""
    (small,), (large,) = layouts["1x4"], layouts["1x1"]
    assert selected_by_one_alone(small["microbatch"]["steps"][0], large["microbatch"]["steps"][0])
    distances = parameter_distances(small["microbatch"]["after"], large["microbatch"]["after"])
    assert min(distances.values()) > PARAMETER_TOLERANCE


def global_steps(ranks: list[dict[str, Run]], rule: str) -> list[Step]:
    """Of each step the valid targets of all ranks, by ascending key."""
    return [by_key(parts) for parts in zip(*(rank[rule]["steps"] for rank in ranks), strict=True)]


def by_key(parts: tuple[Step, ...]) -> Step:
    order = torch.cat([part["keys"] for part in parts]).argsort()
    return {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}


def selected_by_one_alone(one: Step, other: Step) -> list[int]:
    """Keys of targets that one layout selects and the other does not, but for those at the threshold in both."""
    assert one["keys"].equal(other["keys"])
    at_threshold = [(step["values"] - step["thresholds"]).abs() < VALUE_TOLERANCE for step in (one, other)]
    return one["keys"][(one["selected"] != other["selected"]) & ~(at_threshold[0] & at_threshold[1])].tolist()


def parameter_distances(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    assert one.keys() == other.keys()
    return {name: float((one[name] - other[name]).norm() / other[name].norm()) for name in other}
