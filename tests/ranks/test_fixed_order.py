"""`train.deterministic`: backward passes, and they alone, sum in a fixed order."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from megaslm.training import train as training
from megaslm.training.run import TrainingRun
from tests.forks import fork_ranks, statuses_of
from tests.toy import make_dataset, run_config


@pytest.mark.parametrize("deterministic", [False, True])
def test_backward_passes_have_a_fixed_order_if_told_so(tmp_path: Path, deterministic: bool) -> None:
    make_dataset(tmp_path / "tokens", {("train", "a"): [20, 15]})
    config = run_config(tmp_path / "run", tmp_path / "tokens", train={"deterministic": deterministic})

    def run() -> None:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
        go_on, seen = training._train_to_the_end, set[bool]()

        def note(*_: object) -> None:
            seen.add(torch.are_deterministic_algorithms_enabled())

        def look(job: TrainingRun, say: object) -> None:
            layer: nn.Module = job.engine.model.lm.model.layers[0]
            layer.register_full_backward_hook(note)
            go_on(job, print)
            assert seen == {deterministic}
            assert not torch.are_deterministic_algorithms_enabled()
            assert torch.utils.deterministic.fill_uninitialized_memory
            assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == deterministic

        training._train_to_the_end = look
        training.train(config)

    assert statuses_of(fork_ranks(1, run)) == [0]
