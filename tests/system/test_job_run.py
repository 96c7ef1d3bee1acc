"""A run of a job in processes of its own, one of which fails."""

from pathlib import Path

import pytest

from megaslm.errors import ConfigError
from megaslm.jobs.ledger import Ledger
from megaslm.jobs.progress import JobProgress, Unwatched
from megaslm.jobs.run import JobRun


def fail_in_the_second(number: int) -> None:
    if number == 1:
        raise ConfigError("a setting")


def test_the_error_of_a_process_is_raised_by_the_run(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, JobProgress, place="the dataset")
    run = JobRun(ledger, "run", [0], Unwatched(), job="a-verb", unit="rows", size=lambda _: 1, is_done=lambda _: False)
    with pytest.raises(ConfigError, match=r"^a setting$"):
        run.in_processes(2, fail_in_the_second)
