"""A scheduler's signal to a process, or to all of a job, at any moment from its first line to its end."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megaslm import cli
from megaslm.config import load as config_load
from megaslm.engine import distributed, stop_signal
from megaslm.engine.distributed import join_world
from megaslm.engine.stop_signal import StopSignal
from megaslm.training.checkpoints.store import complete_checkpoints
from tests.forks import fork, fork_ranks, statuses_of, wait_until
from tests.messages import Says
from tests.toy import make_dataset, run_config, write_config
from tests.training import losses, run_training, start_training, with_steps

MANY_STEPS = 2000
ONE_TELLING_SECONDS = 1.0


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stop") / "tokens"
    make_dataset(folder, {("train", "a"): [20, 15], ("train", "b"): [30]})
    return folder


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGUSR1", marks=pytest.mark.slow)])
def test_a_job_of_which_all_processes_are_told_saves_and_resumes(name: str, dataset: Path, tmp_path: Path) -> None:
    """The loaders are told too, in the middle of their work; the run continues as if nothing had happened."""
    config = run_config(tmp_path / "run", dataset, data={"loader_workers": 1}, log={"every_steps": 1})
    metrics = tmp_path / "run" / "metrics.jsonl"
    ranks = start_training(with_steps(config, MANY_STEPS), world_size=2)
    try:
        wait_until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 12)
        os.killpg(ranks[0], signal.Signals[name])
        assert statuses_of(ranks) == [75, 75]
    finally:
        if any(is_there(rank) for rank in ranks):
            os.killpg(ranks[0], signal.SIGKILL)
    made = len(losses(tmp_path / "run"))
    assert [one.step for one in complete_checkpoints(tmp_path / "run" / "checkpoints")] == [made]
    run_training(with_steps(config, made + 2), world_size=2, resume=True)
    assert len(losses(tmp_path / "run")) == made + 2


def is_there(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def told_before(function: Callable[..., object]) -> Callable[..., object]:
    """The function in a process that is told to stop just before."""

    def told(*arguments: object, **keywords: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments, **keywords)

    return told


@pytest.mark.parametrize(
    ("module", "name", "status"),
    [(config_load, "load", 75), (distributed, "leave_world", 0), (distributed, "end_process", 0)],
    ids=["reading its configuration", "leaving", "ending"],
)
def test_the_command_answers_from_its_first_line_to_its_end(
    module: object, name: str, status: int, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told after its last save it has nothing to make again."""
    config = write_config(tmp_path / "run.yaml", run_config(tmp_path / "run", dataset))
    monkeypatch.setattr(sys, "argv", ["megaslm", "train", str(config)])
    monkeypatch.setattr(module, name, told_before(getattr(module, name)))
    assert statuses_of([fork(cli.main)]) == [status]
    assert len(complete_checkpoints(tmp_path / "run" / "checkpoints")) == (status == 0)


def test_a_second_signal_ends_a_process_that_is_stuck_in_a_collective(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Python's own handlers are not run; one that follows at once is the same telling."""
    monkeypatch.setattr(stop_signal, "_ONE_TELLING_SECONDS", ONE_TELLING_SECONDS)

    def rank() -> None:
        with StopSignal():
            world = join_world()
            (tmp_path / str(world.rank)).touch()
            if world.is_first:
                dist.all_reduce(torch.ones(1))
            time.sleep(600)

    first, other = fork_ranks(2, rank)
    try:
        wait_until(lambda: all((tmp_path / number).exists() for number in "01"))
        time.sleep(0.5)
        for number in (signal.SIGUSR1, signal.SIGTERM):
            os.kill(first, number)
        time.sleep(2 * ONE_TELLING_SECONDS)
        assert os.waitpid(first, os.WNOHANG) == (0, 0)
        os.kill(first, signal.SIGTERM)
        assert statuses_of([first]) == [-signal.SIGTERM]
    finally:
        os.kill(other, signal.SIGKILL)
        statuses_of([other])


def test_ctrl_c_is_named_and_saves(dataset: Path, tmp_path: Path, says: Says) -> None:
    """`launcher/local.sh` sends SIGINT and SIGTERM. To a process that has both the kernel gives SIGTERM first."""
    config = with_steps(run_config(tmp_path / "run", dataset, log={"every_steps": 1}), MANY_STEPS)
    metrics = tmp_path / "run" / "metrics.jsonl"
    process = fork(lambda: told_apart(["train", str(write_config(tmp_path / "run.yaml", config))], tmp_path / "said"))
    wait_until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 8)
    for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
        os.kill(process, number)
    assert statuses_of([process]) == [75]
    made = len(losses(tmp_path / "run"))
    assert [one.step for one in complete_checkpoints(tmp_path / "run" / "checkpoints")] == [made]
    says((tmp_path / "said").read_text().splitlines()[-1], STEPS=made)


def told_apart(arguments: list[str], said: Path) -> None:
    """`megaslm ARGUMENTS` with its standard error in a file."""
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    sys.argv = ["megaslm", *arguments]
    cli.main()


@pytest.mark.parametrize("has_begun", [False, True])
def test_ctrl_c_ends_at_once_before_the_work_and_pressed_twice(
    has_begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    """From a thread, as the main one may be stuck; Ctrl-C that comes twice at once was pressed once."""
    monkeypatch.setattr(stop_signal, "_ONE_PRESS_SECONDS", ONE_TELLING_SECONDS)
    said = tmp_path / "said"

    def work() -> None:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        stop = StopSignal(before_work="nothing is lost")
        stop.listen()
        if has_begun:
            stop.before_work = None
            stop.kept = "step 3 of run is saved"
        (tmp_path / "listens").touch()
        with stuck():
            time.sleep(600)

    process = fork(work)
    wait_until((tmp_path / "listens").exists)
    os.kill(process, signal.SIGINT)
    if has_begun:
        wait_until(lambda: said.exists() and "\n" in said.read_text())
        os.kill(process, signal.SIGINT)
        time.sleep(1.5 * ONE_TELLING_SECONDS)
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
        os.kill(process, signal.SIGINT)
    assert statuses_of([process]) == [130 if has_begun else 75]
    says(said.read_text())


@contextmanager
def stuck() -> Iterator[None]:
    """Keeps Python's handlers from being run in the main thread, as a collective does."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    yield


def test_after_its_context_signals_do_what_they_did() -> None:
    came: list[int] = []
    former = signal.signal(signal.SIGUSR1, lambda number, frame: came.append(number))
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert stop.told
        os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert came == [signal.SIGUSR1]
    assert signal.set_wakeup_fd(-1) == -1
