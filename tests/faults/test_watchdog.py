"""A stopped process, a hung loader and a rank's own error, one after another: each is named, and the run continues."""

from pathlib import Path

import pytest

from tests.faults.elastic import ElasticRun
from tests.faults.figures import Figures
from tests.faults.host import processes_of, wait_until_gone
from tests.faults.runs import Material, weights_sha256
from tests.messages import lines_with

SILENCE_SECONDS = 5.0
HANG_SECONDS = 20.0
# As megaslm/health/watchdog.py has it.
ENDED_WITHIN_SECONDS = 3.0
GRACE_AFTER_A_FAILURE_SECONDS = 5.0

FINDINGS = (("rank 1 (host ", "(T)"), ("rank 1 (host ", "'data' of step 5 "), ("rank 0 (host ", "InjectedFault"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whoever_holds_up_the_others_is_named_and_ended(
    material: Material, undisturbed: str, figures: Figures, tmp_path: Path
) -> None:
    guard = {"silence_seconds": SILENCE_SECONDS, "hang_seconds": HANG_SECONDS}
    config = material.config(tmp_path / "run", guard=guard)
    faults = "stop@rank1:step3; hang@rank1:step5:data:attempt1; raise@rank0:step6:attempt2"
    with ElasticRun(config, tmp_path, max_restarts=3, faults=faults) as run:
        assert run.wait(seconds=800) == 0, run.output
        wait_until_gone(lambda: processes_of(run.mark))
    assert weights_sha256(config) == undisturbed
    stopped, hung, raised = run.injected()
    for finding in FINDINGS:
        assert lines_with(run.output, *finding), run.output
    assert run.output.count("rank 0: its stacks") >= 2
    limits = {
        "stopped": (stopped, SILENCE_SECONDS + ENDED_WITHIN_SECONDS),
        "hung": (hung, HANG_SECONDS + ENDED_WITHIN_SECONDS),
        "raised": (raised, GRACE_AFTER_A_FAILURE_SECONDS + ENDED_WITHIN_SECONDS),
    }
    for name, (fault, limit) in limits.items():
        detection_seconds = run.detection_seconds(fault)
        assert detection_seconds < limit
        figures.record("watchdog", **{f"{name}_seconds": detection_seconds, f"{name}_limit_seconds": limit})
