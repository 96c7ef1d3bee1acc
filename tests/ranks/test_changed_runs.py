"""A run that is resumed with other settings or data: what must be allowed, and what a refusal leaves as it was."""

import shutil
from pathlib import Path

import pytest

from megaslm.config.schema import RunConfig
from megaslm.errors import ConfigError
from megaslm.training.run_folder import RunFolder
from megaslm.training.step_rows import rows_of_step
from tests.messages import Says
from tests.toy import SEQ_LEN, make_dataset, run_config, write_config
from tests.training import LENGTHENED, changed, losses, run_training, with_steps

STEP_TOKENS = 8 * SEQ_LEN
SHORT, LONG = [17, 13], [17, 13, 20, 4]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the datasets: `long` begins with the rows of `short`, 30, and has 54."""
    folder = tmp_path_factory.mktemp("data")
    for name, parts in (("short", SHORT), ("long", LONG)):
        make_dataset(folder / name, {("train", "a"): parts})
    return folder


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run of two epochs of `short`: six steps."""
    run = tmp_path_factory.mktemp("finished") / "run"
    config = run_config(run, data / "short", train={"total_tokens": None, "epochs": "2"})
    run_training(config)
    return config


@pytest.fixture
def config(finished: RunConfig, tmp_path: Path) -> RunConfig:
    """That of a copy of the finished run."""
    return finished.model_copy(update={"run_dir": shutil.copytree(finished.run_dir, str(tmp_path / "run"))})


def test_epochs_are_the_run_of_as_many_tokens(config: RunConfig, tmp_path: Path) -> None:
    recorded = RunFolder(tmp_path / "run").config().train
    assert (recorded.total_tokens, recorded.epochs) == (6 * STEP_TOKENS, None)
    in_tokens = with_steps(config, 6).model_copy(update={"run_dir": str(tmp_path / "in-tokens")})
    run_training(in_tokens)
    assert losses(tmp_path / "run") == losses(tmp_path / "in-tokens")
    # The rows of a step are told by the run's folder, and by its file.
    path = write_config(tmp_path / "run.yaml", config)
    assert rows_of_step(path, 6) == rows_of_step(tmp_path / "run", 6)
    with pytest.raises(ConfigError, match="steps 1 to 6"):
        rows_of_step(path, 7)


def test_the_same_epochs_are_no_change(finished: RunConfig, capfd: pytest.CaptureFixture[str]) -> None:
    run_training(finished, resume=True, allow_changed=())
    assert "changed since" not in capfd.readouterr().out


def test_epochs_of_longer_data_are_a_longer_run(
    config: RunConfig, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    longer = changed(config, data={"train": str(data / "long")})
    run_training(longer, resume=True, allow_changed=(), expect_status=ConfigError.exit_status)
    refused = capfd.readouterr().err
    assert "train/a 2 → 4 parts" in refused
    # 54 rows are six whole batches.
    assert f"train.total_tokens: {6 * STEP_TOKENS} → {12 * STEP_TOKENS}" in refused
    run_training(longer, resume=True, allow_changed=LENGTHENED)
    assert len(losses(tmp_path / "run")) == 12
    # Once allowed it is the run, also for a launcher that starts the same command again.
    for allowed in (LENGTHENED, ()):
        run_training(longer, resume=True, allow_changed=allowed)


def test_a_refused_resume_leaves_the_run_as_it_was(
    config: RunConfig, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    """What it asked for would else be taken for what the run has learned with."""
    record = {name: (tmp_path / "run" / name).read_bytes() for name in ("config.yaml", "manifest.json")}
    shorter = changed(with_steps(config, 4), data={"train": str(data / "long")})
    run_training(shorter, resume=True, allow_changed=LENGTHENED, expect_status=2)
    says(capfd.readouterr().err, "6 steps")
    assert {name: (tmp_path / "run" / name).read_bytes() for name in record} == record
    run_training(config, resume=True, allow_changed=())


def test_a_run_that_has_learned_nothing_takes_other_settings(config: RunConfig, tmp_path: Path) -> None:
    """A first start that failed is repeated with --resume by launchers."""
    folder = RunFolder(tmp_path / "run")
    for checkpoint in folder.checkpoints.iterdir():
        checkpoint.rename(tmp_path / checkpoint.name)
    run_training(changed(config, train={"lr": 1e-3}), resume=True, allow_changed=())
    assert folder.config().train.lr == 1e-3
    assert len(losses(folder.path)) == 6
