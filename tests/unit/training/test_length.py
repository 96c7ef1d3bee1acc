"""Epochs become tokens once the data is known, and the plan of a run is told."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from megaslm.config.plan import BatchPlan, plan_batches
from megaslm.config.schema import RunConfig
from megaslm.errors import ConfigError
from megaslm.training.length import plan_lines, with_total_tokens
from megaslm.training.training_data import open_training_data
from tests.messages import Says
from tests.toy import SEQ_LEN, make_dataset, run_config

STEP_TOKENS = 8 * SEQ_LEN


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets `web` of 29 rows and `code` of 11."""
    folder = tmp_path_factory.mktemp("length")
    make_dataset(folder / "web", {("train", "a"): [12, 9], ("train", "b"): [8], ("heldout", "a"): [3]})
    make_dataset(folder / "code", {("train", "python"): [11]}, seed=1)
    return folder


def of_epochs(folders: Path, epochs: str, *, train: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    length = {"total_tokens": None, "epochs": epochs, **(train or {})}
    return run_config(folders / "run", folders / "web", train=length, **sections)


def resolved(config: RunConfig) -> RunConfig:
    return with_total_tokens(config, open_training_data(config).mixture.rows)


@pytest.mark.parametrize(
    ("epochs", "steps"),
    # 29 rows are 3 whole batches of 8.
    [("1", 3), ("3", 9), ("0.5", 1), ("0.34", 1), ("1.9999", 5), ("0.7", 2), ("1000000", 3_000_000)],
)
def test_epochs_are_whole_steps(folders: Path, epochs: str, steps: int) -> None:
    config = of_epochs(folders, epochs)
    found = resolved(config)
    assert (found.train.total_tokens, found.train.epochs) == (steps * STEP_TOKENS, None)
    assert plan_batches(found, 2).total_steps == steps
    assert resolved(found) == found
    # The file of the run, read again.
    assert RunConfig.model_validate(found.model_dump()) == found


def test_epochs_are_counted_as_decimals(folders: Path) -> None:
    """In floats, 0.29 · 100 is less than 29."""
    config = of_epochs(folders, "0.29", train={"global_batch_tokens": SEQ_LEN})
    assert with_total_tokens(config, rows=100).train.total_tokens == 29 * SEQ_LEN


def test_the_domains_and_streams_that_are_read_count(folders: Path) -> None:
    assert resolved(of_epochs(folders, "2", data={"domains": ["b"]})).train.total_tokens == 2 * STEP_TOKENS
    streams = {name: {"dataset": str(folders / name)} for name in ("web", "code")}
    assert resolved(of_epochs(folders, "2", data={"train": None, "streams": streams})).train.total_tokens == (
        2 * 5 * STEP_TOKENS
    )
    weighted = {name: {**stream, "weight": 1.0} for name, stream in streams.items()}
    assert resolved(of_epochs(folders, "2", data={"train": None, "streams": weighted})).train.total_tokens == (
        2 * 5 * STEP_TOKENS
    )


def test_less_than_a_step_is_refused(folders: Path, says: Says) -> None:
    for config in (of_epochs(folders, "0.3"), of_epochs(folders, "2", train={"global_batch_tokens": 32 * SEQ_LEN})):
        with pytest.raises(ConfigError) as refused:
            resolved(config)
        says(refused, f"train.epochs = {config.train.epochs}", "29")


@pytest.mark.parametrize(
    "train", [{"warmup_tokens": 3 * STEP_TOKENS}, {"schedule": "wsd", "decay_tokens": 4 * STEP_TOKENS}]
)
def test_the_schedule_must_fit_into_the_epochs(folders: Path, train: dict[str, Any], says: Says) -> None:
    assert resolved(of_epochs(folders, "2", train=train)).train.total_tokens == 6 * STEP_TOKENS
    with pytest.raises(ConfigError) as refused:
        resolved(of_epochs(folders, "1", train=train))
    says(refused, "train.epochs = 1", 3 * STEP_TOKENS)


def test_the_length_is_not_known_before_the_data_is(folders: Path, says: Says) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_batches(of_epochs(folders, "3"), 1)
    says(refused, "train.epochs = 3", "train.total_tokens")


@pytest.mark.parametrize(
    ("length", "found"),
    [
        ({"total_tokens": 1000, "epochs": 3}, "total_tokens = 1000 and epochs = 3"),
        ({"total_tokens": None, "epochs": None}, "none"),
        ({"total_tokens": None, "epochs": 0}, "greater than 0"),
        ({"total_tokens": None, "epochs": -1}, "greater than 0"),
    ],
)
def test_one_length_is_given(folders: Path, length: dict[str, Any], found: str) -> None:
    with pytest.raises(ValidationError, match=found):
        run_config(folders / "run", folders / "web", train=length)


def test_the_plan_is_told(folders: Path, says: Says) -> None:
    held_out = {"sets": {"held": {"dataset": str(folders / "web")}}, "every_tokens": 2 * STEP_TOKENS}
    saved = {"every_tokens": 4 * STEP_TOKENS}
    config = resolved(of_epochs(folders, "3", validation=held_out, checkpoint=saved, train={"micro_batch_rows": 2}))
    mixture, plan = open_training_data(config).mixture, plan_batches(config, 2)
    said = "\n".join(plan_lines(config, plan, mixture, after_step=0))
    says(said, "9 steps", f"{9 * STEP_TOKENS:,}", "3 epochs of 29 rows", "2 ranks × 2 rows × 2 micro-steps")
    # Before the first step, after steps 2, 4, 6 and 8, and at the end.
    assert "3 checkpoints, 6 validations" in said
    assert "0 checkpoints, 0 validations" in "\n".join(plan_lines(config, plan, mixture, after_step=9))
    assert "2 checkpoints, 3 validations" in "\n".join(plan_lines(config, plan, mixture, after_step=5))


def test_the_plan_tells_the_measurements_of_probe_rows(folders: Path, says: Says) -> None:
    config = resolved(of_epochs(folders, "3", probe={"every_tokens": 2 * STEP_TOKENS, "rows": 6}))
    mixture, plan = open_training_data(config).mixture, plan_batches(config, 2)
    *_, said = plan_lines(config, plan, mixture, after_step=0)
    says(said, "6 measurements", "6 probe rows")
    *_, said = plan_lines(config, plan, mixture, after_step=5)
    says(said, "3 measurements", "6 probe rows")


def test_the_plan_tells_what_is_read_most(folders: Path, says: Says) -> None:
    streams = {name: {"dataset": str(folders / name), "weight": 1.0} for name in ("web", "code")}
    config = resolved(of_epochs(folders, "1", data={"train": None, "streams": streams}))
    said = next(plan_lines(config, plan_batches(config, 1), open_training_data(config).mixture, after_step=0))
    # Half of 40 rows each: of `code`'s 11, and of 29.
    says(said, "code is read 1.818 times", "0.6897 times")


@pytest.mark.parametrize(("asked", "used"), [(3, 2), (5, 4), (128, 4)])
def test_a_micro_batch_that_is_lowered_is_told(folders: Path, asked: int, used: int, says: Says) -> None:
    config = run_config(folders / "run", folders / "web", train={"micro_batch_rows": asked})
    plan = plan_batches(config, 2)
    assert plan.micro_batch_rows == used
    (told,) = (line for line in _plan_of(config, plan) if "micro_batch_rows" in line)
    says(told, f"train.micro_batch_rows = {asked}", f" {used}", "4")
    as_asked = run_config(folders / "run", folders / "web", train={"micro_batch_rows": 4})
    assert "micro_batch_rows" not in "".join(_plan_of(as_asked, plan_batches(as_asked, 2)))


def _plan_of(config: RunConfig, plan: BatchPlan) -> list[str]:
    return list(plan_lines(config, plan, open_training_data(config).mixture, after_step=0))
