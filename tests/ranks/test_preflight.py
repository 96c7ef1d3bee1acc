"""Jobs in which one rank really differs: they end at once, on all ranks, and say which it is."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megaslm.scoring.job import score
from megaslm.training.checkpoints.store import complete_checkpoints
from megaslm.training.requirements import requirements_of
from megaslm.training.train import train
from tests.forks import fork_ranks, statuses_of
from tests.messages import Says
from tests.scoring import make_reference, task_of
from tests.toy import SHAPE, make_dataset, run_config
from tests.training import changed, run_training, with_steps

HOST = socket.gethostname()
ODD = 2
WORLD_SIZE = 3


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "tokens"
    make_dataset(folder, {("train", "a"): [20, 15]})
    return folder


@pytest.fixture
def refused_by_all(capfd: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Runs `usual` in two ranks and `odd` in a third one; all of them say `expected` and end with status 2."""

    def run(usual: Callable[[], object], odd: Callable[[], object], expected: str) -> None:
        def rank() -> None:
            torch.set_num_threads(1)
            (odd if os.environ["RANK"] == str(ODD) else usual)()

        capfd.readouterr()
        assert statuses_of(fork_ranks(WORLD_SIZE, rank)) == [2] * WORLD_SIZE
        said = capfd.readouterr().err
        assert said.count("1 problem") == said.count(expected) == WORLD_SIZE, said

    return run


def test_ranks_that_fit_say_so_once(
    tokens: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    config = with_steps(run_config(tmp_path / "run", tokens), 2)
    run_training(config, world_size=2)
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "preflight" in line]
    says.without_numbers(line, "2 ranks", "1 host", "1 MiB", " GB/s")

    (checkpoint,) = complete_checkpoints(tmp_path / "run" / "checkpoints")
    written_bytes = sum(path.stat().st_size for path in checkpoint.folder.glob("*.safetensors"))
    assert written_bytes == pytest.approx(requirements_of(config).checkpoint_bytes, rel=0.1)


def test_a_rank_alone_has_nothing_to_say(tokens: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_training(with_steps(run_config(tmp_path / "run", tokens), 1))
    assert "preflight" not in capfd.readouterr().out


def test_another_learning_rate(tokens: Path, tmp_path: Path, refused_by_all: Callable[..., None]) -> None:
    usual = run_config(tmp_path / "run", tokens)
    odd = changed(usual, train={"lr": 0.02})
    refused_by_all(
        lambda: train(usual),
        lambda: train(odd),
        f"  rank {ODD} on {HOST}: train.lr is 0.02, that of 2 other ranks 0.01: start all ranks with one configuration",
    )
    assert not (tmp_path / "run").exists()


def test_another_dataset_at_the_same_path(tmp_path: Path, refused_by_all: Callable[..., None]) -> None:
    """A path that each rank reads from a folder of its own stands for a disk that each host has."""
    for host, rows in (("usual", 20), ("odd", 21)):
        make_dataset(tmp_path / host / "tokens", {("train", "a"): [rows]})
    config = run_config(tmp_path / "run", Path("tokens"))

    def train_on(host: str) -> None:
        os.chdir(tmp_path / host)
        train(config)

    named = f"  rank {ODD} on {HOST}: manifest.json of data.train is "
    refused_by_all(lambda: train_on("usual"), lambda: train_on("odd"), named)
    (tmp_path / "odd" / "tokens").rename(tmp_path / "odd" / "moved")
    missing = f"{named}unreadable (No such file or directory), that of 2 other ranks "
    refused_by_all(lambda: train_on("usual"), lambda: train_on("odd"), missing)


def test_scoring_with_other_settings(tokens: Path, tmp_path: Path, refused_by_all: Callable[..., None]) -> None:
    make_reference(tmp_path / "reference")

    def score_by(batch_rows: int) -> None:
        score(task_of(tmp_path / "reference", tokens, tmp_path / "scored", batch_rows=batch_rows))

    named = f"  rank {ODD} on {HOST}: --batch-rows is 8, that of 2 other ranks 4: "
    refused_by_all(lambda: score_by(4), lambda: score_by(8), named)
    assert not (tmp_path / "scored").exists()


def test_a_model_whose_checkpoints_no_disk_holds(
    tokens: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    config = run_config(tmp_path / "run", tokens, model={"from_scratch": {**SHAPE, "vocab_size": 10**12}})
    run_training(config, expect_status=2)
    said = capfd.readouterr().err
    says.without_numbers(said, "2 problems", f"  {tmp_path / 'run' / 'checkpoints'} ", f"  {HOST} ", HOST=HOST)
    assert not (tmp_path / "run").exists()


def test_the_configuration_of_all_ranks_is_compared_in_full(tokens: Path, tmp_path: Path) -> None:
    """Whatever setting it is in which one rank differs."""
    usual = run_config(tmp_path / "run", tokens)
    settings = requirements_of(usual).settings
    assert len(settings) > 60
    assert {"seed", "train.lr", "data.train", "model.from_scratch.hidden_size", "guard.on_spike"} <= settings.keys()
    assert requirements_of(changed(usual, slm={"keep_ratio": "0.5"})).settings != settings
