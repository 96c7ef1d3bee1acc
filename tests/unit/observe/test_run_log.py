import json
import sys
from pathlib import Path

import pytest

from megaslm.observe.console import RunConsole
from megaslm.observe.records import StepRecord
from megaslm.observe.run_log import RunLog


def step(number: int) -> StepRecord:
    return StepRecord(number, 10 * number, 1.5, 2.5, 0.6, 1e-3, 0.7, 100.0)


def log_in(folder: Path) -> RunLog:
    console = RunConsole("run", total_steps=9, done_steps=0)
    return RunLog(console, folder / "metrics.jsonl", folder / "tensorboard", last_step=0)


def steps_in(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_file_that_cannot_be_written_is_told_of_once_and_caught_up_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = log_in(tmp_path)
    log.write([step(1)])
    (tmp_path / "metrics.jsonl").rename(tmp_path / "aside")
    (tmp_path / "metrics.jsonl").mkdir()
    log.write([step(2)])
    log.write([step(3)])
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert said.err.startswith(f"warning: {tmp_path / 'metrics.jsonl'}: cannot be written: [Errno 21] Is a directory")
    assert "step 3/9" in said.out
    (tmp_path / "metrics.jsonl").rmdir()
    (tmp_path / "aside").rename(tmp_path / "metrics.jsonl")
    log.write([step(4)])
    log.close()
    assert steps_in(tmp_path) == [1, 2, 3, 4]
    assert capsys.readouterr().err == ""


def test_what_is_never_written_is_told_of_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = log_in(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    log.write([step(1)])
    log.close()
    assert f"{tmp_path / 'metrics.jsonl'}: still cannot be written; what was not is lost" in capsys.readouterr().err


def test_a_console_that_cannot_be_written_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = log_in(tmp_path)
    with Path("/dev/full").open("w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        log.say("one")
        log.write([step(1)])
        # Closing it would write what it still holds.
        patch.undo()
        with pytest.raises(OSError, match="No space"):
            full.close()
    assert steps_in(tmp_path) == [1]
    said = capsys.readouterr().err
    assert said.startswith("warning: the console: cannot be written: [Errno 28] No space left on device")
    assert said.count("\n") == 1
