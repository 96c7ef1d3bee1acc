"""A rank that its host lets run for half of the time is named, and the other is not."""

import re
from pathlib import Path

import pytest

from tests.faults.figures import Figures
from tests.faults.runs import Material, run_ranks, steps_made

SLOW_FROM = 41
STEPS = 160


@pytest.mark.slow
def test_a_slow_rank_is_named(
    material: Material, figures: Figures, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = material.config(tmp_path / "run", steps=STEPS, log={"every_steps": 10})
    capfd.readouterr()
    assert run_ranks(config, injected=f"slow@rank1:step{SLOW_FROM}") == [0, 0]
    said = capfd.readouterr().out
    warned = re.search(r"warning: rank (\d+) on [^(\n]*? ([\d.]+) times", said)
    assert warned is not None, said
    assert warned[1] == "1"
    assert "rank 0 on" not in said
    warned_after = max(steps_made(said[: warned.start()]))
    assert warned_after >= SLOW_FROM
    figures.record("slow_rank", steps_to_warn=warned_after - SLOW_FROM + 1, steps_between_reports=10, ratio=warned[2])
