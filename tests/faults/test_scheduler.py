"""A scheduler tells torchrun to stop, and torchrun all processes, loaders too; the next job continues from there."""

import signal
from pathlib import Path

import pytest

from tests.faults.elastic import ElasticRun
from tests.faults.figures import Figures
from tests.faults.host import processes_of, wait_until_gone
from tests.faults.runs import Material, records, steps_made
from tests.messages import lines_with

MANY_STEPS = 4000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_torchrun_hands_on_what_a_scheduler_tells(material: Material, figures: Figures, tmp_path: Path) -> None:
    # torchrun signals the process groups of its ranks, in which their loaders are.
    loading = {"loader_workers": 1}
    config = material.config(tmp_path / "run", steps=MANY_STEPS, data=loading)
    made: list[int] = []
    for told in (signal.SIGUSR1, signal.SIGTERM):
        with ElasticRun(config, tmp_path / told.name, max_restarts=3) as run:
            run.wait_for_steps(0, 3)
            run.send(told)
            # torchrun's own status: that of its ranks, 75, it does not hand on.
            assert run.wait(seconds=60) == 1
            wait_until_gone(lambda run=run: processes_of(run.mark))
        made += steps_made(run.output)
        assert lines_with(run.output, told.name, f"step {made[-1]} ", "--resume")
        assert "RuntimeError" not in run.output
    stopped_at = made[-1]
    last = material.config(tmp_path / "run", steps=stopped_at + 4, data=loading)
    with ElasticRun(last, tmp_path / "last") as run:
        assert run.wait(seconds=240) == 0, run.output
    made += steps_made(run.output)
    assert made == list(range(1, stopped_at + 5)) == [record["step"] for record in records(last)]
    figures.record("sigterm", all_processes=len(made) - (stopped_at + 4))
