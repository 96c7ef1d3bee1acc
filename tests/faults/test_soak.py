"""A random rank is killed again and again: the run finishes, with the weights of the one that nothing happened to."""

import os
import random
import signal
import statistics
import time
from pathlib import Path

import pytest

from megaslm.config.schema import RunConfig
from tests.faults.elastic import ElasticRun, Rank
from tests.faults.figures import Figures
from tests.faults.host import processes_of, wait_until_gone
from tests.faults.runs import Material, records, run_ranks, steps_made, tokens_of, weights_sha256

RESTARTS = int(os.environ.get("MEGASLM_SOAK_RESTARTS", "8"))
STEPS_BETWEEN_KILLS = (15, 30)
STEPS_BETWEEN_CHECKPOINTS = 5
STEPS = 30 * RESTARTS
LONGEST_ATTEMPT_SECONDS = 180


def kill_one(run: ElasticRun, attempt: int, chance: random.Random) -> tuple[float, Rank]:
    victim = chance.choice([rank for rank in run.alive() if rank.attempt == attempt])
    killed_at = time.time()
    os.kill(victim.process, signal.SIGKILL)
    return killed_at, victim


def training_seconds(config: RunConfig) -> float:
    """What the steps of a run took, without its start."""
    return sum(tokens_of(1) / record["tokens_per_second"] for record in records(config))


@pytest.mark.slow
@pytest.mark.timeout(300 + 200 * RESTARTS)
def test_a_run_survives_kill_after_kill(material: Material, figures: Figures, tmp_path: Path) -> None:
    checkpoint = {"every_tokens": tokens_of(STEPS_BETWEEN_CHECKPOINTS)}
    undisturbed = material.config(tmp_path / "undisturbed", steps=STEPS, checkpoint=checkpoint)
    assert run_ranks(undisturbed) == [0, 0]
    config = material.config(tmp_path / "run", steps=STEPS, checkpoint=checkpoint)
    chance, kills = random.Random(20), []
    began = time.time()
    with ElasticRun(config, tmp_path, max_restarts=RESTARTS) as run:
        for attempt in range(RESTARTS):
            run.wait_for_steps(attempt, chance.randint(*STEPS_BETWEEN_KILLS))
            kills.append(kill_one(run, attempt, chance))
        assert run.wait(seconds=LONGEST_ATTEMPT_SECONDS) == 0, run.output
        seconds = time.time() - began
        wait_until_gone(lambda: processes_of(run.mark))
    assert {rank.attempt for rank in run.ranks} == set(range(RESTARTS + 1))
    assert weights_sha256(config) == weights_sha256(undisturbed)
    assert [record["step"] for record in records(config)] == list(range(1, STEPS + 1))
    figures.record(
        "soak",
        restarts=RESTARTS,
        mean_restart_seconds=statistics.mean(
            run.first_step_of(attempt + 1) - killed_at for attempt, (killed_at, _) in enumerate(kills)
        ),
        seconds_between_kills=(kills[-1][0] - kills[0][0]) / (RESTARTS - 1),
        effective_time_ratio=training_seconds(undisturbed) / seconds,
        steps_lost=len(steps_made(run.output)) - STEPS,
        steps=STEPS,
    )
