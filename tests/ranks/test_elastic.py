"""A run that was saved on some ranks continues on others, under any ZeRO stage, as if nothing had happened."""

import shutil
from pathlib import Path

import pytest

from megaslm.config.schema import RunConfig
from tests.toy import SHAPE, make_dataset, run_config
from tests.training import are_equal, changed, last_weights, losses, run_training, with_steps

MORE_LAYOUTS = [(2, 1, 3, 3), (4, 2, 3, 3), (2, 4, 3, 3), (1, 2, 1, 1), (2, 2, 3, 1)]
SEVERAL_SUB_GROUPS = {"zero_optimization": {"sub_group_size": 1000}}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elastic") / "tokens"
    make_dataset(folder, {("train", "a"): [20, 15], ("train", "b"): [30]})
    return folder


def eight_steps(run: Path, dataset: Path, **zero: object) -> RunConfig:
    """Eight steps that select by their own loss; weight decay is strong, so that a wrong one shows."""
    return run_config(
        run,
        dataset,
        model={"from_scratch": {**SHAPE, "tie_embeddings": True}},
        train={
            "objective": "slm",
            "schedule": "constant",
            "total_tokens": 8 * 8 * 16,
            "micro_batch_rows": 4,
            "weight_decay": 5.0,
        },
        slm={"criterion": "loss", "mode": "running"},
        zero={"param_persistence_threshold": 40, **zero},
        deepspeed_extra=SEVERAL_SUB_GROUPS if zero.get("stage", 3) == 3 else {},
    )


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    run_training(eight_steps(run, dataset))
    return run


@pytest.mark.parametrize(
    ("before", "after", "stage_before", "stage_after"),
    [
        (1, 2, 3, 3),
        (2, 1, 2, 2),
        (2, 1, 0, 0),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_LAYOUTS),
    ],
)
def test_a_run_resumes_on_other_ranks(
    undisturbed: Path, dataset: Path, tmp_path: Path, before: int, after: int, stage_before: int, stage_after: int
) -> None:
    run = tmp_path / "run"
    run_training(with_steps(eight_steps(run, dataset, stage=stage_before), 4), world_size=before)
    run_training(eight_steps(run, dataset, stage=stage_after), world_size=after, resume=True)

    assert losses(run) == pytest.approx(losses(undisturbed), abs=2e-6)
    expected, found = last_weights(undisturbed), last_weights(run)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert (found[name] - weight).norm() <= 1e-4 * weight.norm(), name


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after", "stage"), [(2, 1, 1), (1, 2, 2), (2, 1, 3)])
def test_a_run_with_its_optimiser_on_the_host_resumes_on_other_ranks(
    undisturbed: Path, dataset: Path, tmp_path: Path, before: int, after: int, stage: int
) -> None:
    config = eight_steps(tmp_path / "run", dataset, stage=stage, offload_optimizer=True)
    run_training(with_steps(config, 4), world_size=before)
    run_training(config, world_size=after, resume=True)
    assert losses(tmp_path / "run") == pytest.approx(losses(undisturbed), abs=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after", "stage_before", "stage_after"), [(2, 1, 3, 1), (1, 2, 1, 3)])
def test_a_run_in_bf16_resumes_on_other_ranks(
    dataset: Path, tmp_path: Path, before: int, after: int, stage_before: int, stage_after: int
) -> None:
    """But for the rounding of gradients, which are summed in another order; without its moments it differs by 4e-3."""

    def six_steps(name: str, stage: int) -> RunConfig:
        config = with_steps(eight_steps(tmp_path / name, dataset, stage=stage), 6)
        return changed(config, model={"precision": "bf16"}, train={"objective": "clm", "lr": 1e-3})

    run_training(six_steps("whole", stage_before))
    run_training(with_steps(six_steps("cut", stage_before), 3), world_size=before)
    run_training(six_steps("cut", stage_after), world_size=after, resume=True)
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), abs=3e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_on_as_many_ranks_a_run_resumes_bit_for_bit(dataset: Path, tmp_path: Path, stage: int) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_training(eight_steps(whole, dataset, stage=stage), world_size=2)
    run_training(with_steps(eight_steps(cut, dataset, stage=stage), 4), world_size=2)
    run_training(eight_steps(cut, dataset, stage=stage), world_size=2, resume=True)

    assert losses(cut) == losses(whole)
    assert are_equal(last_weights(cut), last_weights(whole))


@pytest.mark.slow
def test_micro_batches_and_loader_workers_may_change(undisturbed: Path, dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = eight_steps(run, dataset)
    run_training(with_steps(config, 4), world_size=2)
    after = changed(config, train={"micro_batch_rows": 2}, data={"loader_workers": 2})
    run_training(after, world_size=2, resume=True)

    assert losses(run) == pytest.approx(losses(undisturbed), abs=2e-6)


def test_a_number_of_ranks_that_does_not_divide_the_batch_is_refused(
    undisturbed: Path, dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    config = eight_steps(tmp_path / "run", dataset)
    run_training(config, world_size=3, resume=True, expect_status=2)
    assert "use 1, 2, 4, 8 ranks" in capfd.readouterr().err
