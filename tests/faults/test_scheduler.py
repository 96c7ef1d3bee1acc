"""A scheduler tells torchrun to stop: it hands the signal on and waits; the next job goes on from there."""

import signal
from pathlib import Path

import pytest

from tests.faults.elastic import ElasticRun
from tests.faults.host import processes_of, wait_until_gone
from tests.faults.runs import Material, records, steps_made
from tests.forks import wait_until

STEPS = 400


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_torchrun_hands_on_what_a_scheduler_tells(material: Material, tmp_path: Path) -> None:
    config = material.config(tmp_path / "run", steps=STEPS)
    with ElasticRun(config, tmp_path / "first", max_restarts=3) as run:
        wait_until(lambda: run.steps_of(0) >= 3)
        run.send(signal.SIGTERM)
        # torchrun's own status: that of its ranks, 75, it does not hand on.
        assert run.wait(seconds=60) == 1
        wait_until_gone(lambda: processes_of(run.mark))
    saved = max(steps_made(run.output))
    assert saved < STEPS
    assert f"told to stop by SIGTERM; step {saved} is saved" in run.output
    shorter = material.config(tmp_path / "run", steps=saved + 4)
    with ElasticRun(shorter, tmp_path / "second") as again:
        assert again.wait(seconds=240) == 0, again.output
    assert steps_made(again.output) == list(range(saved + 1, saved + 5))
    assert [record["step"] for record in records(shorter)] == list(range(1, saved + 5))
