"""The order of rows as a run has it: told beforehand, the same after a resume, and refused where it was another one."""

from pathlib import Path

import pytest

from megaslm.config.schema import RunConfig
from megaslm.errors import CheckpointError, ConfigError
from megaslm.training.checkpoints.progress import read_progress
from megaslm.training.checkpoints.store import complete_checkpoints
from megaslm.training.step_rows import rows_of_step
from tests.forked_cli import run_megaslm
from tests.messages import Says
from tests.toy import SEQ_LEN, make_dataset, run_config, write_config
from tests.training import changed, forget_in_progress, run_training, with_steps

BATCH_ROWS = 8
STEPS = 6


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """One epoch has five steps."""
    make_dataset(tmp_path / "web", {("train", "a"): [17, 13]})
    make_dataset(tmp_path / "code", {("train", "b"): [11]}, seed=1)
    streams = {name: {"dataset": str(tmp_path / name), "weight": 1.0} for name in ("web", "code")}
    config = run_config(
        tmp_path / "run",
        tmp_path / "web",
        train={"global_batch_tokens": BATCH_ROWS * SEQ_LEN, "total_tokens": STEPS * BATCH_ROWS * SEQ_LEN},
        checkpoint={"every_tokens": 3 * BATCH_ROWS * SEQ_LEN},
        log={"every_steps": 1},
    )
    return changed(config, data={"train": None, "streams": streams})


def domain_rows(config: RunConfig) -> dict[str, int]:
    checkpoint = complete_checkpoints(Path(config.run_dir) / "checkpoints")[-1].folder
    return read_progress(checkpoint).rows_read


def test_the_rows_of_a_step_are_told_and_counted(config: RunConfig, tmp_path: Path, says: Says) -> None:
    path = write_config(tmp_path / "run.yaml", config)
    told = [rows_of_step(path, step) for step in range(1, STEPS + 1)]
    assert [each.epoch for each in told] == [0] * 5 + [1]
    rows = [row for each in told for row in each.rows]
    # The smaller stream has begun its third pass, and no row of it came a third time before.
    assert sorted({rows.count(f"code:{number}") for number in range(11)}) == [2, 3]
    run_training(config)
    assert domain_rows(config) == {name: sum(row.startswith(f"{name}:") for row in rows) for name in ("web", "code")}
    printed = run_megaslm("inspect", tmp_path / "run", "--order", "6")
    assert printed[printed.index("step 6,") :].split() == ["step", "6,", "epoch", "1:", *told[-1].rows]
    with pytest.raises(ConfigError) as refused:
        rows_of_step(path, 7)
    says(refused, "--order 7: ", "1 to 6")
    says(run_megaslm("inspect", path, "--order", "1", "--row", "1", expect_status=2), "--order ")
    assert "config.yaml" in run_megaslm("inspect", tmp_path / "web", "--order", "1", expect_status=2)


def test_a_checkpoint_of_the_order_before_is_refused_where_there_are_weights(
    config: RunConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    run_training(with_steps(config, 3))
    (checkpoint,) = complete_checkpoints(Path(config.run_dir) / "checkpoints")
    forget_in_progress(checkpoint.folder, "row_order")
    run_training(config, resume=True, expect_status=CheckpointError.exit_status)
    assert "megaslm export" in capfd.readouterr().err
    # Nor are its rows told in an order in which it has not read them.
    assert "megaslm export" in run_megaslm("inspect", config.run_dir, "--order", "2", expect_status=2)
