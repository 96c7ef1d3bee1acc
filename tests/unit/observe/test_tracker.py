"""What a tracker gets of a run. The tests of the libraries themselves run where they are installed."""

import sys
from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from megaslm.errors import ConfigError
from megaslm.observe.records import SkippedRecord, StepRecord, ValidationRecord
from megaslm.observe.run_description import RunDescription
from megaslm.observe.tracker import NUMBER, Library, Tracker, check_tracker
from tests.messages import Says

ABOUT = RunDescription("seed: 17\n", {"seed": 17, "train.lr": 0.001})
STEPS = [StepRecord(number, 10 * number, 1.0 / number, 2.5, 0.6, 1e-3, 0.7, 100.0) for number in (1, 2, 3)]
RECORDS = [*STEPS[:2], ValidationRecord(2, 20, "held", "a", 2.0, 7.4, 50), SkippedRecord(3, 30, "a loss is NaN", 1)]


def tracker_of(library: Library, folder: Path) -> Tracker:
    run = folder / "7b" / "slm"
    run.mkdir(parents=True, exist_ok=True)
    return Tracker(library, project="rho", run=run, description=ABOUT)


def number_in(folder: Path) -> str:
    return (folder / "7b" / "slm" / NUMBER).read_text(encoding="utf-8")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[Any]]:
    """A module with the library's calls, which notes them and fails in one of them."""

    def make(failing: str) -> list[Any]:
        calls: list[Any] = []

        def called(call: str, /, *args: object, **kwargs: object) -> None:
            calls.append((call, args, kwargs))
            if call == failing:
                raise RuntimeError("no network")

        module = ModuleType("trackio")
        for call in ("init", "log", "alert", "finish"):
            setattr(module, call, partial(called, call))
        monkeypatch.setattr(module, "AlertLevel", Enum("AlertLevel", "WARN"), raising=False)
        monkeypatch.setitem(sys.modules, "trackio", module)
        return calls

    return make


def test_records_of_a_step_go_together(tmp_path: Path, stand_in: Callable[[str], list[Any]]) -> None:
    calls = stand_in("nothing")
    tracker = tracker_of("trackio", tmp_path)
    tracker.write(RECORDS)
    tracker.alert("skipped step", "step 3: a loss is NaN")
    tracker.close()
    assert [name for name, _, _ in calls] == ["init", "log", "log", "log", "alert", "finish"]
    name = f"7b-slm-{number_in(tmp_path)}"
    assert calls[0][2] == {"project": "rho", "name": name, "config": ABOUT.settings, "resume": "allow"}
    (values,) = calls[2][1]
    assert (values["loss/selected"], values["loss_validation/held/a"], values["train/tokens"]) == (0.5, 2.0, 20)
    assert [call[2]["step"] for call in calls[1:4]] == [1, 2, 3]
    assert tracker.lost_entries == 0


@pytest.mark.parametrize("failing", ["init", "log", "alert", "finish"])
def test_a_tracker_fails_as_a_disk_does(tmp_path: Path, stand_in: Callable[[str], list[Any]], failing: str) -> None:
    stand_in(failing)
    found = []

    def attempt(call: Callable[[], object]) -> object:
        try:
            return call()
        except OSError as error:
            found.append(str(error))
            return None

    tracker = attempt(lambda: tracker_of("trackio", tmp_path))
    if isinstance(tracker, Tracker):
        attempt(lambda: tracker.write(RECORDS))
        attempt(lambda: tracker.alert("a", "b"))
        attempt(tracker.close)
        assert tracker.lost_entries == (len(RECORDS) if failing == "log" else 0)
    assert found == ["RuntimeError: no network"]


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, says: Says) -> None:
    monkeypatch.setattr("megaslm.observe.tracker.find_spec", lambda name: None)
    check_tracker(None)
    with pytest.raises(ConfigError) as error:
        check_tracker("wandb")
    says(error.value, "log.tracker", "'megaslm[wandb]'")


def test_wandb_gets_what_a_resumed_run_makes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    first = tracker_of("wandb", tmp_path)
    first.write(STEPS)
    first.close()
    resumed = tracker_of("wandb", tmp_path)
    resumed.write(STEPS[1:])
    resumed.alert("loss spike", "step 2")
    assert dict(wandb.run.config) == ABOUT.settings
    number = number_in(tmp_path)
    assert (wandb.run.project, wandb.run.name, wandb.run.id) == ("rho", f"7b-slm-{number}", number)
    resumed.close()
    stored = [
        b"".join(_pieces(file.read_bytes()))
        for file in (tmp_path / "7b" / "slm" / "wandb").glob("offline-run-*/*.wandb")
    ]
    assert len(stored) == 2
    assert all(str(record.loss).encode() in content for content in stored for record in STEPS[1:])


def test_trackio_stores_what_it_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    trackio = pytest.importorskip("trackio")
    tracker = tracker_of("trackio", tmp_path)
    tracker.write(RECORDS)
    tracker.alert("loss spike", "step 2")
    tracker.close()
    (run,) = trackio.Api().runs("rho")
    assert run.name == f"7b-slm-{number_in(tmp_path)}"


def _pieces(stored: bytes) -> Iterator[bytes]:
    """The content of a file of an offline run, without the headers that divide it: LevelDB's log format."""
    block_bytes, header_bytes = 32_768, 7
    place = header_bytes
    while place + header_bytes <= len(stored):
        left = block_bytes - place % block_bytes
        if left < header_bytes:
            place += left
            continue
        begin = place + header_bytes
        place = begin + int.from_bytes(stored[place + 4 : place + 6], "little")
        yield stored[begin:place]
