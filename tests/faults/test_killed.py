"""SIGKILL of a rank: the other ends at once, nothing is left, and the group continues to the same weights."""

from pathlib import Path

from tests.faults.elastic import ElasticRun
from tests.faults.figures import Figures
from tests.faults.host import processes_of, wait_until_gone
from tests.faults.runs import STEPS, STEPS_BETWEEN_CHECKPOINTS, Material, records, steps_made, weights_sha256


def test_a_killed_rank_ends_the_other_and_both_go_on(
    material: Material, undisturbed: str, figures: Figures, tmp_path: Path
) -> None:
    config = material.config(tmp_path / "run")
    with ElasticRun(config, tmp_path, max_restarts=1, faults="kill@rank1:step7") as run:
        assert run.wait(seconds=240) == 0, run.output
        wait_until_gone(lambda: processes_of(run.mark))
    (fault,) = run.injected()
    assert {rank.attempt for rank in run.ranks} == {0, 1}
    detection_seconds = run.detection_seconds(fault)
    assert detection_seconds < 2
    made = steps_made(run.output)
    steps_lost = len(made) - STEPS
    assert 0 < steps_lost <= STEPS_BETWEEN_CHECKPOINTS
    assert weights_sha256(config) == undisturbed
    assert [record["step"] for record in records(config)] == list(range(1, STEPS + 1))
    figures.record(
        "sigkill",
        detection_seconds=detection_seconds,
        steps_lost=steps_lost,
        steps_between_checkpoints=STEPS_BETWEEN_CHECKPOINTS,
        restart_seconds=run.first_step_of(1) - fault.seconds,
    )
