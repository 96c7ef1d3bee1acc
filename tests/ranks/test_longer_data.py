"""A run whose dataset has become longer continues: the epoch ends as it would have ended, then come new rows."""

import shutil
from pathlib import Path

import pytest

from megaslm.config.schema import RunConfig
from megaslm.errors import CheckpointError, ConfigError
from megaslm.training.checkpoints.progress import read_progress
from megaslm.training.checkpoints.store import complete_checkpoints
from megaslm.training.step_rows import rows_of_step
from tests.messages import Says, line_with
from tests.toy import SEQ_LEN, make_dataset, run_config, write_config
from tests.training import are_equal, changed, forget_in_progress, last_weights, run_training, with_steps

BATCH_ROWS = 8
SHORT, LONG = [17, 13], [17, 13, 20, 4]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the datasets: `long` begins with `short`, `other` and `wider` do not."""
    folder = tmp_path_factory.mktemp("data")
    for name, parts in (("short", SHORT), ("long", LONG)):
        make_dataset(folder / name, {("train", "a"): parts})
    make_dataset(folder / "code", {("train", "b"): [11]}, seed=1)
    make_dataset(folder / "other", {("train", "a"): LONG}, seed=7)
    make_dataset(folder / "wider", {("train", "a"): SHORT, ("train", "c"): [30]})
    return folder


@pytest.fixture(scope="module", params=["even", "weights"])
def begun(data: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> RunConfig:
    """A run of three steps. Its streams have 41 rows, an epoch five steps; a checkpoint after every third one."""
    streams = {
        name: {"dataset": str(data / folder), "weight": 1.0 if request.param == "weights" else None}
        for name, folder in (("web", "short"), ("code", "code"))
    }
    config = run_config(
        tmp_path_factory.mktemp("begun") / "run",
        data / "short",
        train={"global_batch_tokens": BATCH_ROWS * SEQ_LEN, "schedule": "constant"},
        checkpoint={"every_tokens": 3 * BATCH_ROWS * SEQ_LEN, "keep_last": 9},
        log={"every_steps": 1},
    )
    config = with_steps(changed(config, data={"train": None, "streams": streams}), 3)
    run_training(config)
    return config


@pytest.fixture
def config(begun: RunConfig, tmp_path: Path) -> RunConfig:
    """That of a copy of the run that has begun."""
    return begun.model_copy(update={"run_dir": shutil.copytree(begun.run_dir, str(tmp_path / "run"))})


def with_web(config: RunConfig, folder: str) -> RunConfig:
    """The same run with another folder as its first stream."""
    streams = config.model_dump()["data"]["streams"]
    streams["web"]["dataset"] = str(Path(streams["web"]["dataset"]).parent / folder)
    return changed(config, data={"streams": streams})


def rows_read(config: RunConfig) -> dict[str, int]:
    return read_progress(complete_checkpoints(Path(config.run_dir) / "checkpoints")[-1].folder).rows_read


def test_the_epoch_ends_and_the_next_one_has_the_new_rows(
    config: RunConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    before = write_config(tmp_path / "before.yaml", with_steps(config, 12))
    told_before = [rows_of_step(before, step) for step in range(1, 6)]
    longer = with_steps(with_web(config, "long"), 12)
    run_training(longer, world_size=2, resume=True)
    said = capfd.readouterr().out
    assert "train/a 2 → 4 parts" in said
    says(line_with(said, "24", "epoch 1"))
    told = [rows_of_step(tmp_path / "run", step) for step in range(1, 13)]
    assert told[:5] == told_before
    # 65 rows make epochs of eight steps.
    assert [each.epoch for each in told] == [0] * 5 + [1] * 7
    new_rows = {f"web:{number}" for number in range(sum(SHORT), sum(LONG))}
    assert new_rows & {row for each in told[5:] for row in each.rows}
    rows = [row for each in told for row in each.rows]
    assert rows_read(config) == {name: sum(row.startswith(f"{name}:") for row in rows) for name in ("web", "code")}


def test_where_it_was_cut_off_does_not_matter(config: RunConfig) -> None:
    longer = with_steps(with_web(config, "long"), 9)
    run_training(longer, resume=True)
    weights = last_weights(Path(config.run_dir))
    # Once more from the checkpoint that was written in the epoch that the new rows joined.
    checkpoint = complete_checkpoints(Path(config.run_dir) / "checkpoints")[-1].folder
    for path in sorted(checkpoint.iterdir()):
        path.unlink()
    checkpoint.rmdir()
    run_training(longer, resume=True)
    assert are_equal(last_weights(Path(config.run_dir)), weights)


def test_a_dataset_that_does_not_begin_with_the_one_before_is_refused(
    config: RunConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    for folder in ("other", "wider"):
        run_training(with_web(config, folder), resume=True, expect_status=ConfigError.exit_status)
        assert "data.streams.web.tokens_sha256" in capfd.readouterr().err
    run_training(with_steps(with_web(config, "long"), 6), resume=True)
    run_training(with_steps(config, 9), resume=True, expect_status=ConfigError.exit_status)
    assert "data.streams.web.tokens_sha256" in capfd.readouterr().err


def test_a_checkpoint_that_does_not_say_how_long_the_data_was_is_refused(
    config: RunConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    (checkpoint,) = complete_checkpoints(Path(config.run_dir) / "checkpoints")
    forget_in_progress(checkpoint.folder, "extents")
    run_training(with_web(config, "long"), resume=True, expect_status=CheckpointError.exit_status)
    assert str(checkpoint.folder) in capfd.readouterr().err
    run_training(with_steps(config, 6), resume=True)
