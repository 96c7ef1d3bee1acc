"""Whole runs with distillation: resumed, on one and two ranks; without a share of it; and what is refused."""

from pathlib import Path

import pytest
import torch

from megaslm.config.schema import RunConfig
from tests.forked_cli import run_megaslm
from tests.messages import Says, line_with
from tests.scoring import make_reference, run_job, task_of
from tests.toy import make_dataset, run_config, write_config
from tests.training import are_equal, changed, last_weights, run_training, with_steps

STEPS_BEFORE = 3
SETTINGS: dict[str, dict[str, object]] = {
    "selected": {"weight": 0.5, "temperature": 2.0},
    "unselected": {"weight": 0.5, "on": "unselected"},
}
RANKS_AND_STAGES = {"selected": (2, 3), "unselected": (1, 2)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, with and without top tokens."""
    folder = tmp_path_factory.mktemp("distilled")
    make_reference(folder / "model")
    make_dataset(folder / "tokens", {("train", "a"): [20, 15], ("train", "b"): [30]})
    run_job(1, task_of(folder / "model", folder / "tokens", folder / "scored"))
    run_job(1, task_of(folder / "model", folder / "tokens", folder / "top", top_logits=5))
    run_job(1, task_of(folder / "model", folder / "tokens", folder / "wider", top_logits=6))
    return folder


def six_steps(run: Path, dataset: Path, **slm: object) -> RunConfig:
    """Six steps of 8 rows in micro-batches of 2."""
    train = {"objective": "slm", "schedule": "constant", "micro_batch_rows": 2}
    return run_config(run, dataset, train=train, slm=slm)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_run_ends_as_an_uninterrupted_one(folder: Path, tmp_path: Path, name: str) -> None:
    world_size, stage = RANKS_AND_STAGES[name]
    whole, parted, plain = (
        changed(six_steps(tmp_path / run, folder / "top", distill=distill), zero={"stage": stage})
        for run, distill in (("whole", SETTINGS[name]), ("parted", SETTINGS[name]), ("plain", {}))
    )
    run_training(whole, world_size=world_size)
    run_training(with_steps(parted, STEPS_BEFORE), world_size=world_size)
    run_training(parted, world_size=world_size, resume=True)
    run_training(plain, world_size=world_size)
    assert are_equal(last_weights(tmp_path / "whole"), last_weights(tmp_path / "parted"))
    assert not are_equal(last_weights(tmp_path / "whole"), last_weights(tmp_path / "plain"))


def test_one_rank_and_two_learn_the_same(folder: Path, tmp_path: Path) -> None:
    weights = []
    for world_size in (1, 2):
        run_training(
            six_steps(tmp_path / str(world_size), folder / "top", distill=SETTINGS["selected"]), world_size=world_size
        )
        weights.append(last_weights(tmp_path / str(world_size)))
    for name, ours in weights[0].items():
        torch.testing.assert_close(ours, weights[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("world_size", [1, 2])
def test_without_a_share_the_columns_change_no_bit(folder: Path, tmp_path: Path, world_size: int) -> None:
    # Random selection: the losses of the two datasets may differ in their last bit.
    for run, dataset, distill in (
        ("with", "top", {"weight": 0, "temperature": 3.0, "on": "unselected"}),
        ("without", "scored", {}),
    ):
        run_training(
            six_steps(tmp_path / run, folder / dataset, criterion="random", distill=distill), world_size=world_size
        )
    assert are_equal(last_weights(tmp_path / "with"), last_weights(tmp_path / "without"))


def test_a_dataset_without_the_columns_is_refused(folder: Path, tmp_path: Path, says: Says) -> None:
    for criterion, dataset in (("excess", "scored"), ("loss", "tokens")):
        config = six_steps(tmp_path / "run", folder / dataset, criterion=criterion, distill=SETTINGS["selected"])
        said = run_megaslm("train", write_config(tmp_path / "run.yaml", config), expect_status=2)
        says(line_with(said, "ref_top_logprob", "--top-logits"))
    assert not (tmp_path / "run").exists()


def test_datasets_with_other_numbers_of_tokens_are_refused(folder: Path, tmp_path: Path, says: Says) -> None:
    config = six_steps(tmp_path / "run", folder / "top", distill=SETTINGS["selected"])
    streams = {name: {"dataset": str(folder / name)} for name in ("top", "wider")}
    mixed = changed(config, data={"train": None, "streams": streams})
    said = run_megaslm("train", write_config(tmp_path / "run.yaml", mixed), expect_status=2)
    says(line_with(said, "--top-logits"), "(--top-logits 5)", "(--top-logits 6)")
