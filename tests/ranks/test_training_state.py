"""What the optimiser keeps: moments that are forgotten leave no memory behind, at any stage."""

import gc
from pathlib import Path

import pytest
import torch

from megaslm.engine.training_state import TrainingState
from megaslm.training import train as training
from megaslm.training.run import TrainingRun
from tests.forks import fork_ranks, statuses_of
from tests.toy import make_dataset, run_config
from tests.training import changed


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_moments_that_are_forgotten_are_gone(tmp_path: Path, stage: int) -> None:
    make_dataset(tmp_path / "tokens", {("train", "a"): [20, 15]})
    config = run_config(tmp_path / "run", tmp_path / "tokens", zero={"stage": stage})

    def run() -> None:
        go_on = training._train_to_the_end

        def look(job: TrainingRun, say: object) -> None:
            go_on(job, print)
            state = job.engine.state()
            held = {moments.data_ptr() for moments in _moments(state)}
            assert held
            state.forget_moments()
            gc.collect()
            left = {each.untyped_storage().data_ptr() for each in gc.get_objects() if torch.is_tensor(each)}
            assert not held & left

        training._train_to_the_end = look
        training.train(config)

    assert statuses_of(fork_ranks(2, run)) == [0, 0]


def _moments(state: TrainingState) -> list[torch.Tensor]:
    return [state.quantity(name, flat) for flat in range(len(state.flats)) for name in ("exp_avg", "exp_avg_sq")]


def test_a_checkpoint_may_come_before_the_first_update(tmp_path: Path) -> None:
    """Where all steps so far were skipped, weights and moments are those of the beginning."""
    make_dataset(tmp_path / "tokens", {("train", "a"): [20, 15]})
    config = changed(run_config(tmp_path / "run", tmp_path / "tokens"), guard={"dry_run": True})

    def run() -> None:
        go_on = training._train_to_the_end

        def look(job: TrainingRun, say: object) -> None:
            state = job.engine.state()
            state.ensure_moments()
            assert state.adam_steps() == 0
            assert all(not moments.any() for moments in _moments(state))
            go_on(job, print)

        training._train_to_the_end = look
        training.train(config)

    assert statuses_of(fork_ranks(1, run)) == [0]
