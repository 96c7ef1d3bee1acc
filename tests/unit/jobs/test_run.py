"""What a process of a run tells the others of its failure."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from megaslm.errors import ConfigError, MegaSLMError, PeerFailed
from megaslm.jobs.ledger import Ledger
from megaslm.jobs.progress import JobProgress, Unwatched
from megaslm.jobs.ray_workers import RayCluster
from megaslm.jobs.run import JobRun, _telling


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger[JobProgress]:
    return Ledger(tmp_path, JobProgress, place="the dataset")


def failure_of(ledger: Ledger[JobProgress], error: Exception) -> MegaSLMError | None:
    def work(number: int) -> None:
        raise error

    _telling(ledger, "run", work, 0)
    return ledger.failure("run")


def test_an_unexpected_error_is_also_printed_where_it_came_from(
    ledger: Ledger[JobProgress], capsys: pytest.CaptureFixture[str]
) -> None:
    found = failure_of(ledger, ValueError("a value"))
    assert type(found) is MegaSLMError
    assert str(found) == "ValueError: a value"
    assert ", in work\n" in capsys.readouterr().err


def test_an_expected_error_is_told_and_not_printed(
    ledger: Ledger[JobProgress], capsys: pytest.CaptureFixture[str]
) -> None:
    found = failure_of(ledger, ConfigError("a setting"))
    assert type(found) is ConfigError
    assert str(found) == "a setting"
    assert capsys.readouterr().err == ""


def test_a_full_disk_is_told_as_such(ledger: Ledger[JobProgress], capsys: pytest.CaptureFixture[str]) -> None:
    found = failure_of(ledger, OSError(28, "No space left on device", "a file"))
    assert type(found) is MegaSLMError
    assert str(found).startswith("a file: No space left on device; ")
    assert capsys.readouterr().err == ""


def test_a_process_that_only_follows_tells_nothing(
    ledger: Ledger[JobProgress], capsys: pytest.CaptureFixture[str]
) -> None:
    assert failure_of(ledger, PeerFailed("another process has failed", 1)) is None
    assert capsys.readouterr().err == ""


class OneAfterTheOther:
    """A cluster whose process fails after the last look at it."""

    def run(self, count: int, work: Callable[[int], None], *, look: Callable[[], None], **_: object) -> None:
        look()
        for number in range(count):
            work(number)


def fail(number: int) -> None:
    raise ConfigError("a setting")


def test_a_failure_just_before_the_end_is_raised_by_the_run(ledger: Ledger[JobProgress]) -> None:
    run = JobRun(ledger, "run", [0], Unwatched(), job="a-verb", unit="rows", size=lambda _: 1, is_done=lambda _: True)
    with pytest.raises(ConfigError, match=r"^a setting$"):
        run.in_processes(1, fail, ray=cast(RayCluster, OneAfterTheOther()))
