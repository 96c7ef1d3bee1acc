"""A run of a job in processes of its own: what it makes of one that fails."""

from functools import partial
from pathlib import Path

import pytest

from megaslm.errors import ConfigError, MegaSLMError, PeerFailed
from megaslm.jobs.ledger import Ledger
from megaslm.jobs.progress import JobProgress, Unwatched
from megaslm.jobs.run import JobRun

FAILURES = {0: ValueError("a value"), 1: ConfigError("a setting"), 2: OSError(28, "No space left on device", "a file")}


@pytest.fixture
def run(tmp_path: Path) -> JobRun[int]:
    ledger = Ledger(tmp_path, JobProgress, place="the dataset")
    return JobRun(ledger, "run", [0], Unwatched(), job="a-verb", unit="rows", size=lambda _: 1, is_done=lambda _: False)


def fail(which: int, number: int) -> None:
    raise FAILURES[which]


def follow(number: int) -> None:
    raise PeerFailed("another process has failed", 1)


def test_an_unexpected_error_is_printed_where_it_came_from(run: JobRun[int], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MegaSLMError, match=r"^ValueError: a value$"):
        run.in_processes(1, partial(fail, 0))
    assert ", in fail\n" in capfd.readouterr().err


@pytest.mark.parametrize(("which", "kind"), [(1, ConfigError), (2, MegaSLMError)])
def test_an_expected_error_is_raised_and_printed_by_nobody(
    run: JobRun[int], capfd: pytest.CaptureFixture[str], which: int, kind: type[MegaSLMError]
) -> None:
    with pytest.raises(MegaSLMError, match="a file" if which == 2 else "^a setting$") as caught:
        run.in_processes(1, partial(fail, which))
    assert type(caught.value) is kind
    assert capfd.readouterr().err == ""


def test_a_process_that_only_follows_fails_nothing(run: JobRun[int], capfd: pytest.CaptureFixture[str]) -> None:
    run.in_processes(1, follow)
    assert capfd.readouterr().err == ""
