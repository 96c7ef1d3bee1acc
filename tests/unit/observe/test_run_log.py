import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megaslm.observe.console import RunConsole
from megaslm.observe.records import StepRecord, ValidationRecord
from megaslm.observe.run_log import RunLog
from megaslm.observe.tracker import Tracker
from tests.events import points_in
from tests.messages import Says


def step(number: int) -> StepRecord:
    return StepRecord(number, 10 * number, 1.5, 2.5, 0.6, 1e-3, 0.7, 100.0)


def validation(number: int, loss: float) -> ValidationRecord:
    return ValidationRecord(number, 10 * number, "held", "a", loss, 7.4, 50)


def log_in(
    folder: Path,
    *,
    last_step: int = 0,
    validation_is_due: bool = False,
    open_tracker: Callable[[], Tracker] | None = None,
) -> RunLog:
    console = RunConsole("run", total_steps=9, done_steps=last_step)
    return RunLog(
        console,
        folder / "metrics.jsonl",
        folder / "tensorboard",
        last_step=last_step,
        validation_is_due=validation_is_due,
        tokens_per_step=10,
        open_tracker=open_tracker,
    )


def steps_in(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("is_due", "losses"), [(False, [3.0, 2.0]), (True, [3.0, 1.0])])
def test_a_resumed_run_takes_back_the_validation_that_it_makes_again(
    tmp_path: Path, is_due: bool, losses: list[float]
) -> None:
    """And only that: the step itself stays in both files."""
    log_in(tmp_path).write([validation(0, 3.0), step(1), validation(1, 2.0), step(2)])
    resumed = log_in(tmp_path, last_step=1, validation_is_due=is_due)
    if is_due:
        resumed.write([validation(1, 1.0)])
    resumed.write([step(2)])
    assert steps_in(tmp_path) == [0, 1, 1, 2]
    shown = points_in(tmp_path / "tensorboard")
    assert shown["loss_validation/held/a"] == list(enumerate(losses))
    assert shown["loss/selected"] == [(1, 1.5), (2, 1.5)]


def test_a_run_that_starts_over_takes_back_its_first_validation(tmp_path: Path) -> None:
    log_in(tmp_path).write([validation(0, 3.0), step(1)])
    log_in(tmp_path).write([validation(0, 2.0)])
    assert steps_in(tmp_path) == [0]
    assert points_in(tmp_path / "tensorboard")["loss_validation/held/a"] == [(0, 2.0)]


def test_a_sync_writes_what_waits_and_fails_as_a_write_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], says: Says
) -> None:
    log = log_in(tmp_path)
    log.write([step(1)])
    synced: set[Path] = set()
    fsync = os.fsync

    def note_and_fsync(descriptor: int) -> None:
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note_and_fsync)
    log.sync()
    events = set((tmp_path / "tensorboard").glob("**/events*"))
    assert len(events) == 2
    folders = {tmp_path, tmp_path / "tensorboard", tmp_path / "tensorboard" / "tokens"}
    assert synced == {tmp_path / "metrics.jsonl", *folders, *events}
    assert capsys.readouterr().err == ""

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    log.sync()
    log.sync()
    said = capsys.readouterr().err
    says(said, tmp_path / "metrics.jsonl", "[Errno 5] Input/output error")
    assert said.count("\n") == 2


def test_a_file_that_cannot_be_written_is_told_of_once_and_caught_up_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], says: Says
) -> None:
    log = log_in(tmp_path)
    log.write([step(1)])
    (tmp_path / "metrics.jsonl").rename(tmp_path / "aside")
    (tmp_path / "metrics.jsonl").mkdir()
    log.write([step(2)])
    log.write([step(3)])
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    says(said.err, tmp_path / "metrics.jsonl", "[Errno 21]")
    assert "step 3/9" in said.out
    (tmp_path / "metrics.jsonl").rmdir()
    (tmp_path / "aside").rename(tmp_path / "metrics.jsonl")
    log.write([step(4)])
    log.close()
    assert steps_in(tmp_path) == [1, 2, 3, 4]
    assert capsys.readouterr().err == ""


def test_what_is_never_written_is_told_of_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], says: Says
) -> None:
    log = log_in(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    log.write([step(1)])
    log.close()
    says(capsys.readouterr().err, tmp_path / "metrics.jsonl")


def test_a_console_that_cannot_be_written_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], says: Says
) -> None:
    log = log_in(tmp_path)
    with Path("/dev/full").open("w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        log.say("one")
        log.write([step(1)])
        # Closing it would write what it still holds.
        patch.undo()
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            full.close()
    assert steps_in(tmp_path) == [1]
    said = capsys.readouterr().err
    says(said, "[Errno 28]")
    assert said.count("\n") == 1


def test_a_tracker_that_cannot_be_opened_is_told_of_and_done_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], says: Says
) -> None:
    def fail() -> Tracker:
        raise OSError("CommError: no network")

    log = log_in(tmp_path, open_tracker=fail)
    log.write([step(1)])
    log.alert("run: loss spike", "step 1")
    log.close()
    assert steps_in(tmp_path) == [1]
    said = capsys.readouterr().err
    says(said, "log.tracker", "CommError: no network")
    assert said.count("\n") == 1
