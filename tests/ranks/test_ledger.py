"""The ledger: each task is done once, by whoever draws it, whatever dies."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import BaseModel

from megaslm.errors import ConfigError, DataError, MegaSLMError, PeerFailed, Stopped
from megaslm.jobs.ledger import MOST_DEATHS, Drawn, Ledger, draw_all
from megaslm.jobs.progress import Tally, read_progress
from megaslm.jobs.run import JobRun
from tests.forks import fork, statuses_of, wait_until
from tests.watched import Watched

RUN = "run"


class By(BaseModel):
    process: int


def ledger_in(folder: Path) -> Ledger[By]:
    folder.mkdir(exist_ok=True)
    return Ledger(folder, By, place="the dataset")


def run_of(tasks: dict[str, int], *, folder: Path, done: str = "", run_id: str = RUN) -> tuple[JobRun[str], Watched]:
    """A run of tasks with these numbers of rows, and who watches it."""
    watched = Watched()
    run = JobRun(
        ledger_in(folder),
        run_id,
        list(tasks),
        watched,
        job="prepare",
        unit="rows",
        size=lambda task: tasks[task],
        is_done=lambda task: task == done,
    )
    return run, watched


def work_off(folder: Path, tasks: list[str], do: Callable[[str], None], run_id: str = RUN) -> list[str]:
    """What a process of a job does."""
    ledger = ledger_in(folder)

    def draw(task: str) -> Drawn:
        def run() -> By:
            do(task)
            return By(process=os.getpid())

        return ledger.draw(task, run, run_id)

    return draw_all(tasks, draw, lambda: ledger.raise_if_failed(run_id))


def test_tasks_are_each_done_once_though_one_process_is_killed(tmp_path: Path) -> None:
    folder, tasks = tmp_path / "job", [f"{number:03}" for number in range(40)]

    def do(task: str) -> None:
        with (tmp_path / f"log-{os.getpid()}").open("a") as log:
            log.write(f"{task}\n")
        time.sleep(0.02)

    processes = [fork(lambda: work_off(folder, tasks, do) and None) for _ in range(4)]
    wait_until(lambda: len(list(folder.glob("task-*.json"))) > 4)
    os.kill(processes[1], signal.SIGKILL)
    assert statuses_of(processes) == [0, -signal.SIGKILL, 0, 0]
    outcomes = ledger_in(folder).outcomes()
    assert sorted(outcomes) == tasks
    done = [line for log in tmp_path.glob("log-*") for line in log.read_text().split()]
    # The one that was killed had begun one task, which another has done.
    assert sorted(set(done)) == tasks
    assert len(done) <= len(tasks) + 1


def test_the_task_of_a_dead_process_is_drawn_at_once_by_one_that_waits(tmp_path: Path) -> None:
    folder = tmp_path / "job"

    def hang(_: str) -> None:
        (tmp_path / "begun").touch()
        time.sleep(60)

    killed = fork(lambda: work_off(folder, ["0"], hang) and None)
    wait_until((tmp_path / "begun").exists)
    other = fork(lambda: work_off(folder, ["0"], lambda _: (tmp_path / "again").touch()) and None)
    time.sleep(0.3)
    assert not (tmp_path / "again").exists()
    os.kill(killed, signal.SIGKILL)
    assert statuses_of([killed, other]) == [-signal.SIGKILL, 0]
    outcome = ledger_in(folder).outcome("0")
    assert outcome is not None
    assert outcome.process == other


def test_a_task_that_kills_whoever_does_it_is_left_and_the_next_run_tries_again(tmp_path: Path) -> None:
    folder, tasks = tmp_path / "job", ["a", "poison", "z"]

    def do(task: str) -> None:
        if task == "poison":
            os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(MOST_DEATHS):
        assert statuses_of([fork(lambda: work_off(folder, tasks, do) and None)]) == [-signal.SIGKILL]
    assert work_off(folder, tasks, do) == ["poison"]
    assert sorted(ledger_in(folder).outcomes()) == ["a", "z"]
    # Another job that shares the folder has not seen anybody die.
    assert statuses_of([fork(lambda: work_off(folder, tasks, do, "another") and None)]) == [-signal.SIGKILL]
    ledger_in(folder).forget_runs()
    assert work_off(folder, tasks, lambda _: None) == []


def test_a_task_that_ends_in_an_error_blames_nobody(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path / "job")

    def fail() -> By:
        raise DataError("no")

    for _ in range(MOST_DEATHS + 1):
        with pytest.raises(DataError):
            ledger.draw("a", fail, RUN)
    assert ledger.draw("a", lambda: By(process=1), RUN) is Drawn.DONE


def test_a_task_that_another_host_ended_is_seen_to_be_done_under_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system shows a note of another host once the folder is opened again."""
    ledger = ledger_in(tmp_path / "job")
    monkeypatch.setattr(ledger, "look_again", lambda: ledger.note("a", By(process=1)))
    assert ledger.draw("a", lambda: By(process=2), RUN) is Drawn.DONE
    assert ledger.outcome("a") == By(process=1)


class OfItsOwn(DataError):
    """Found in no list of errors."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DataError("a"), DataError),
        (ConfigError("a"), ConfigError),
        (OfItsOwn("a"), DataError),
        (Stopped("a"), Stopped),
        (ValueError("a"), MegaSLMError),
    ],
)
def test_the_first_failure_reaches_all_processes_of_a_run(
    tmp_path: Path, error: Exception, kind: type[MegaSLMError]
) -> None:
    ledger = ledger_in(tmp_path / "job")
    # A process that only follows another's failure tells nothing.
    ledger.fail(RUN, PeerFailed("first", 75))
    assert ledger.failure(RUN) is None
    ledger.raise_if_failed(RUN)
    ledger.fail(RUN, error)
    ledger.fail(RUN, DataError("later"))
    found = ledger.failure(RUN)
    assert isinstance(found, kind)
    assert str(found).endswith("a")
    assert found.exit_status == (error.exit_status if isinstance(error, MegaSLMError) else 1)
    with pytest.raises(PeerFailed) as caught:
        ledger.raise_if_failed(RUN)
    assert caught.value.exit_status == found.exit_status
    assert ledger.failure("another") is None


def test_what_is_forgotten_is_done_again(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    assert work_off(folder, ["a", "b"], lambda _: None) == []
    ledger_in(folder).forget_all()
    assert ledger_in(folder).outcomes() == {}
    done: list[str] = []
    assert work_off(folder, ["a", "b"], done.append) == []
    assert done == ["a", "b"]


def test_a_removed_ledger_is_gone_at_once_and_so_is_what_a_kill_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = ledger_in(tmp_path / "job")
    ledger.note("a", By(process=1))
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda *_, **__: None)
        ledger.remove()
    assert not ledger.has_outcomes()
    assert len(list(tmp_path.iterdir())) == 1
    for _ in range(2):
        ledger.remove()
        assert list(tmp_path.iterdir()) == []


def test_tallies_are_added_up_and_that_of_a_dead_process_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megaslm.jobs.progress._WRITE_SECONDS", 0.0)
    run, watched = run_of({"a": 10, "b": 40, "c": 20, "d": 20, "e": 10}, done="a", folder=tmp_path)
    first, second = Tally(tmp_path, RUN, 0), Tally(tmp_path, RUN, 1)
    first.report(rows=20)
    first.end_task()
    first.report(rows=7)
    second.report(rows=5)
    second.end_task(retried=True)
    # Process 0 is killed; what it had done of its second task is lost.
    again = Tally(tmp_path, RUN, 0)
    again.report(rows=30)
    again.end_task()
    again.end(left=1)
    # Process 2 is in the midst of its first task.
    Tally(tmp_path, RUN, 2).report(rows=4)
    run.publish()
    (progress,) = watched.shown
    assert (progress.done, progress.total, progress.tasks) == (69, 100, 5)
    assert (progress.counts, progress.processes) == ({"rows": 59}, 3)
    assert (progress.tasks_done, progress.tasks_retried, progress.tasks_left) == (4, 1, 1)
    assert read_progress(tmp_path) == progress
    run.publish()
    assert watched.shown == [progress]
    run.publish(at_once=True)
    run.publish(all_done=True)
    _, _, done = watched.shown
    assert (done.done, done.tasks_done) == (100, 5)


def test_shares_of_one_dataset_publish_at_the_same_moment(tmp_path: Path) -> None:
    runs = [run_of({"a": 1}, folder=tmp_path, run_id=run_id)[0] for run_id in ("one", "other")]

    def publish(run: JobRun[str]) -> None:
        for _ in range(200):
            run.publish(at_once=True)

    with ThreadPoolExecutor(len(runs)) as pool:
        for published in [pool.submit(publish, run) for run in runs]:
            published.result()
    assert read_progress(tmp_path) is not None
