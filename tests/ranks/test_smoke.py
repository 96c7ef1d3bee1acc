"""A smoke test makes the first steps of a run beside it, measures them, and leaves nothing that passes for a run."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megaslm.config.schema import RunConfig
from megaslm.engine.training_state import Quantity
from megaslm.errors import NonFiniteLoss, SaveFailed, Stopped
from megaslm.training import smoke
from megaslm.training.requirements import requirements_of
from megaslm.training.run import TrainingRun
from megaslm.training.train import train
from tests.forked_cli import run_megaslm
from tests.forks import fork_ranks, statuses_of
from tests.injection import faults
from tests.messages import Says, line_with
from tests.toy import SEQ_LEN, make_dataset, run_config, write_config
from tests.training import losses, run_training, with_steps

STEP_TOKENS = 8 * SEQ_LEN
STEPS = 6


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    make_dataset(tmp_path / "tokens", {("train", "a"): [20, 28], ("heldout", "a"): [5]})
    return run_config(
        tmp_path / "run",
        tmp_path / "tokens",
        train={"objective": "slm", "total_tokens": None, "epochs": 1, "warmup_tokens": 2 * STEP_TOKENS},
        slm={"criterion": "loss", "mode": "running"},
        validation={"sets": {"held": {"dataset": str(tmp_path / "tokens")}}, "every_tokens": 2 * STEP_TOKENS},
        checkpoint={"every_tokens": STEP_TOKENS, "keep_every_tokens": 2 * STEP_TOKENS},
        guard={"dry_run": True},
    )


def smoke_of(config: RunConfig) -> Path:
    return Path(f"{config.run_dir}.smoke")


def result_of(config: RunConfig) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((smoke_of(config) / "smoke.json").read_text())
    return result


def content_of(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def in_ranks(
    config: RunConfig, steps: int, *, injected: str = "", world_size: int = 2, before: Callable[[], None] = lambda: None
) -> list[int]:
    def run() -> None:
        faults.arm(injected)
        before()
        train(config, resume=True, smoke_steps=steps)

    return statuses_of(fork_ranks(world_size, run))


def test_it_makes_the_first_steps_of_the_run_and_does_not_touch_it(config: RunConfig, tmp_path: Path) -> None:
    run_training(config, world_size=2)
    before = content_of(Path(config.run_dir))
    path = write_config(tmp_path / "run.yaml", config)
    said = run_megaslm("train", path, "--smoke", "--smoke-steps", "4", "--resume", world_size=2)

    assert content_of(Path(config.run_dir)) == before
    assert losses(smoke_of(config)) == losses(Path(config.run_dir))[:4]
    assert {entry.name for entry in smoke_of(config).iterdir()} == {".lock", "metrics.jsonl", "smoke.json"}
    result = result_of(config)
    assert result["passed"] is True
    assert (result["steps"], result["total_steps"], result["ranks"]) == (4, STEPS, 2)
    # Before the first step and after every second one. Of six checkpoints at most two, those of steps 2, 4 and 6, and
    # one more are there at once.
    assert (result["validations"], result["checkpoints"], result["checkpoints_kept"]) == (4, 6, 6)
    assert set(result["validation_losses"]) == {"held/a"}
    seconds = STEPS * result["step_seconds"] + 4 * result["validation_seconds"]
    assert result["run_seconds"] == pytest.approx(seconds)
    assert result["tokens_per_second"] == pytest.approx(STEP_TOKENS / result["step_seconds"])
    assert result["peak_memory"]["gpu_bytes"] is None
    assert result["peak_memory"]["peak_bytes"] > 10_000_000
    assert result["checkpoint_bytes"] > 100_000
    for number in (
        result["losses"][0],
        result["losses"][-1],
        result["uniform_loss"],
        *result["validation_losses"].values(),
    ):
        assert f"{number:.4f}" in said
    assert f"plan: {STEPS} steps" in said
    assert "passed" in said.splitlines()[-2] + said.splitlines()[-1]


def test_it_makes_no_more_steps_than_the_run_has(config: RunConfig) -> None:
    assert in_ranks(with_steps(config, 3), 50, world_size=1) == [0]
    assert (result_of(config)["steps"], result_of(config)["total_steps"]) == (3, 3)
    assert not Path(config.run_dir).exists()


def test_data_of_less_than_a_step_is_refused_before_the_imports(config: RunConfig, tmp_path: Path, says: Says) -> None:
    path = write_config(tmp_path / "run.yaml", config)
    larger = f"train.global_batch_tokens={64 * SEQ_LEN}"
    said = run_megaslm("train", path, "--smoke", "--set", larger, world_size=2, expect_status=2)
    says(line_with(said, "train.epochs = 1"))
    assert "InputError: 1 " in said
    assert not smoke_of(config).exists()


def test_what_is_left_of_one_is_no_run(config: RunConfig, tmp_path: Path, says: Says) -> None:
    """Neither a whole one nor one that was cut off, which has everything that a run has."""
    assert in_ranks(config, 2, world_size=1) == [0]
    _refused_as_a_run(config, tmp_path, says)
    run_training(config)
    cut_off = smoke_of(config)
    for name in ("config.yaml", "manifest.json", "model", "checkpoints"):
        (Path(config.run_dir) / name).rename(cut_off / name)
    _refused_as_a_run(config, tmp_path, says)
    run_megaslm("export", next((cut_off / "checkpoints").iterdir()), tmp_path / "model", expect_status=2)
    run_megaslm("checkpoint", "prune", cut_off, "--keep-last", "1", expect_status=2)
    assert (cut_off / "checkpoints").is_dir()
    # The next one begins with an empty folder.
    assert in_ranks(config, 2, world_size=1) == [0]
    assert not (cut_off / "checkpoints").exists()


def _refused_as_a_run(config: RunConfig, tmp_path: Path, says: Says) -> None:
    path, folder = write_config(tmp_path / "run.yaml", config), smoke_of(config)
    other = ("--set", f"run_dir={tmp_path / 'other'}", "--set", "model.from_scratch=null")
    for arguments in (
        ("train", path, "--resume", "--set", f"run_dir={folder}"),
        ("train", path, "--set", f"run_dir={folder}"),
        ("train", path, *other, "--set", f"model.from_run={folder}"),
        ("export", folder, tmp_path / "model"),
    ):
        said = run_megaslm(*arguments, expect_status=2)
        says(said.splitlines()[-1], f"{folder}: ", f", {config.run_dir}")


@pytest.mark.parametrize("is_folder", [True, False])
def test_it_empties_no_folder_of_others(config: RunConfig, tmp_path: Path, is_folder: bool, says: Says) -> None:
    taken = smoke_of(config)
    if is_folder:
        taken.mkdir()
    mine = taken / "mine" if is_folder else taken
    mine.write_text("mine")
    said = run_megaslm("train", write_config(tmp_path / "run.yaml", config), "--smoke", expect_status=2)
    says(said.splitlines()[-1], f"{taken}: ")
    assert mine.read_text() == "mine"
    assert not is_folder or [entry.name for entry in taken.iterdir()] == ["mine"]


def test_a_checkpoint_that_differs_from_the_memory_fails_it(
    config: RunConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a weight of one parameter, and in the moments of two others."""
    read_back = smoke._read_back
    places: dict[Quantity, float] = {"weight": 0.0, "exp_avg": 0.5, "exp_avg_sq": 1.0}

    def after_a_change(run: TrainingRun, step: int) -> None:
        if run.world.rank == 1:
            for quantity, place in places.items():
                values = run.engine.state().quantity(quantity, 0)
                values[int(place * (len(values) - 1))] += 1e-6
        read_back(run, step)

    def change_the_memory() -> None:
        smoke._read_back = after_a_change

    assert in_ranks(config, 2, before=change_the_memory) == [SaveFailed.exit_status] * 2
    assert "3 parameters: " in capfd.readouterr().err
    assert result_of(config)["passed"] is None


def test_one_whose_save_fails_is_started_again(
    config: RunConfig, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    assert in_ranks(config, 2, injected="raise@rank0:step2:write") == [SaveFailed.exit_status] * 2
    said = capfd.readouterr().err
    says(line_with(said, "smoke test"))
    assert "--resume" not in said


def test_one_that_is_told_to_stop_has_not_ended(config: RunConfig, capfd: pytest.CaptureFixture[str]) -> None:
    assert in_ranks(config, 5, injected="term@rank1:step2") == [Stopped.exit_status] * 2
    assert "smoke test" in capfd.readouterr().err
    assert result_of(config)["passed"] is None


def test_skipped_steps_are_warned_of(config: RunConfig, capfd: pytest.CaptureFixture[str], says: Says) -> None:
    assert in_ranks(config, 3, injected="nan@rank0:step2", world_size=1) == [0]
    says(line_with(capfd.readouterr().out, "warning: ", "1 of 3 "))
    assert result_of(config)["skipped_steps"] == 1


def test_one_whose_steps_are_all_skipped_fails(config: RunConfig, capfd: pytest.CaptureFixture[str]) -> None:
    injected = "nan@rank0:step1; nan@rank0:step2"
    assert in_ranks(config, 2, injected=injected, world_size=1) == [NonFiniteLoss.exit_status]
    assert result_of(config)["passed"] is None


def test_all_ranks_make_the_same_smoke_test(config: RunConfig) -> None:
    """The preflight compares it, as it does settings."""
    settings = [requirements_of(config, smoke_steps=steps).settings for steps in (None, 3, 4)]
    assert len({tuple(one.items()) for one in settings}) == 3
