"""SIGTERM and SIGUSR1 wherever a run is: saved after that step or the next, status 75, and no step is made twice."""

from pathlib import Path

import pytest

from tests.faults.figures import Figures
from tests.faults.runs import (
    STEPS,
    STEPS_BETWEEN_CHECKPOINTS,
    Material,
    run_ranks,
    steps_made,
    tokens_of,
    weights_sha256,
)
from tests.messages import lines_with

POINTS = {"start": 0, "step": 3, "validate": 2, "save": 4, "write": 4}
"""Where a rank is told, and at which step."""
QUICK = {("term", "step"), ("usr1", "save")}


@pytest.mark.parametrize(
    ("action", "point"),
    [
        pytest.param(action, point, marks=() if (action, point) in QUICK else pytest.mark.slow)
        for action in ("term", "usr1")
        for point in POINTS
    ],
)
def test_one_rank_is_told_to_stop_and_all_do(
    action: str,
    point: str,
    material: Material,
    undisturbed: str,
    figures: Figures,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = material.config(tmp_path / "run", validation={"every_tokens": tokens_of(2)})
    capfd.readouterr()
    assert run_ranks(config, injected=f"{action}@rank1:step{POINTS[point]}:{point}") == [75, 75]
    before = capfd.readouterr()
    made = steps_made(before.out)
    assert made == list(range(1, len(made) + 1))
    assert len(made) < STEPS
    # Without a step there is nothing to resume.
    assert bool(lines_with(before.err, "--resume")) == bool(made)
    assert lines_with(before.err, f"SIG{action.upper()}")
    assert run_ranks(config) == [0, 0]
    made += steps_made(capfd.readouterr().out)
    assert weights_sha256(config) == undisturbed
    assert made == list(range(1, STEPS + 1))
    figures.record("sigterm", **{f"{action}_{point}": len(made) - STEPS})


@pytest.mark.slow
@pytest.mark.parametrize(("action", "statuses"), [("term", [75, 75]), ("usr1", [75, 75]), ("kill", [1, -9])])
def test_one_that_ends_while_it_loads_a_checkpoint_leaves_it_as_it_was(
    action: str,
    statuses: list[int],
    material: Material,
    undisturbed: str,
    figures: Figures,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    capfd.readouterr()
    assert run_ranks(material.config(tmp_path / "run", steps=STEPS_BETWEEN_CHECKPOINTS)) == [0, 0]
    config = material.config(tmp_path / "run")
    assert run_ranks(config, injected=f"{action}@rank1:step{STEPS_BETWEEN_CHECKPOINTS}:load") == statuses
    assert run_ranks(config) == [0, 0]
    assert weights_sha256(config) == undisturbed
    made = steps_made(capfd.readouterr().out)
    assert made == list(range(1, STEPS + 1))
    if action != "kill":
        figures.record("sigterm", **{f"{action}_load": len(made) - STEPS})
