"""launcher/torchrun.sh, tried with a job that only looks around: statuses, restarts, signals, one host and two."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.host import processes_of
from tests.messages import Says
from tests.system.commands.torchrun_job import JOB, began, ended, output, start, status_of, wait_until_begun


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Path]:
    """A folder whose `megaslm` is the job above; `python -m` looks there first. Nothing is left running."""
    (tmp_path / "megaslm").mkdir()
    (tmp_path / "megaslm" / "__init__.py").touch()
    (tmp_path / "megaslm" / "__main__.py").write_text(JOB, encoding="utf-8")
    yield tmp_path
    for process in processes_of(str(tmp_path)):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def test_help_is_instant_and_no_arguments_are_a_mistake(workplace: Path) -> None:
    assert status_of(workplace, "--help") == 0
    assert "launcher/torchrun.sh" in output(workplace)
    assert status_of(workplace) == 2


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NODES", "0"),
        ("NODES", "a[$(touch pwned)]"),
        ("RANKS_PER_NODE", "two"),
        ("MAX_RESTARTS", "-1"),
        ("RENDEZVOUS", "node-1"),
        ("RENDEZVOUS", "a;touch pwned:1"),
        ("RENDEZVOUS", "$(touch pwned):1"),
        ("RENDEZVOUS", "-oProxyCommand=x:1"),
    ],
)
def test_a_value_that_is_not_one_is_refused_by_its_name(workplace: Path, variable: str, value: str) -> None:
    assert status_of(workplace, "exit", "0", **{variable: value}) == 2
    assert output(workplace).startswith(f"{variable} = ")
    assert not (workplace / "pwned").exists()


def test_several_hosts_need_a_place_to_meet(workplace: Path, says: Says) -> None:
    assert status_of(workplace, "exit", "0", NODES="2") == 2
    says(output(workplace), "RENDEZVOUS = ''", "2")


def test_a_host_whose_name_is_not_found_is_waited_for_and_the_wait_can_be_ended(workplace: Path) -> None:
    job = start(workplace, "stop", NODES="2", RENDEZVOUS="nowhere.invalid:29400")
    time.sleep(1)
    assert job.poll() is None
    job.send_signal(signal.SIGTERM)
    assert ended(workplace, job) == 75


@pytest.mark.slow
@pytest.mark.parametrize("status", [75, 2])
def test_what_all_ranks_end_with_is_the_status_and_no_failure(workplace: Path, status: int) -> None:
    assert status_of(workplace, "exit", str(status), str(status)) == status
    assert began(workplace) == {"0-0", "1-0"}
    assert not list((workplace / "tmp").iterdir())
    first = f"launch: 2 ranks on this host; up to 2 restarts: megaslm exit {status} {status}"
    assert output(workplace).splitlines() == [first, "SomeError: why", "SomeError: why"]


@pytest.mark.slow
def test_a_failure_that_stays_is_one(workplace: Path, says: Says) -> None:
    assert status_of(workplace, "exit", "2", "1", MAX_RESTARTS="1") == 1
    says(output(workplace).splitlines()[-1], "1")
    assert began(workplace) == {"0-0", "1-0", "0-1", "1-1"}


@pytest.mark.slow
def test_a_killed_rank_is_started_again_with_the_others(workplace: Path) -> None:
    assert status_of(workplace, "die-once") == 0
    assert began(workplace) == {"0-0", "1-0", "0-1", "1-1"}


@pytest.mark.slow
@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_every_rank_save(workplace: Path, told: signal.Signals) -> None:
    job = start(workplace, "stop")
    wait_until_begun(workplace, {"0-0", "1-0"})
    job.send_signal(told)
    assert ended(workplace, job) == 75, output(workplace)
    assert began(workplace) == {"0-0", "1-0"}


@pytest.mark.slow
def test_ranks_that_cannot_answer_yet_have_been_told_all_the_same(workplace: Path) -> None:
    job = start(workplace, "deaf")
    wait_until_begun(workplace, {"0-0", "1-0"})
    job.send_signal(signal.SIGTERM)
    assert ended(workplace, job) == 75, output(workplace)
    assert began(workplace) == {"0-0", "1-0"}


@pytest.mark.slow
def test_before_there_are_ranks_nothing_is_lost(workplace: Path) -> None:
    job = start(workplace, "stop")
    time.sleep(1)
    job.send_signal(signal.SIGTERM)
    assert ended(workplace, job) == 75, output(workplace)
    assert began(workplace) == set()


@pytest.mark.slow
def test_a_signal_ten_seconds_after_the_first_ends_a_job_that_does_not_stop(workplace: Path) -> None:
    job = start(workplace, "stay")
    wait_until_begun(workplace, {"0-0", "1-0"})
    job.send_signal(signal.SIGTERM)
    time.sleep(5)
    job.send_signal(signal.SIGTERM)
    time.sleep(7)
    assert job.poll() is None
    job.send_signal(signal.SIGTERM)
    assert ended(workplace, job) not in (0, 75)
    assert began(workplace) == {"0-0", "1-0"}


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "status", "attempts"), [("die-once", 0, 2), ("stop", 75, 1)])
def test_the_ranks_of_two_hosts_fail_and_stop_together(workplace: Path, verb: str, status: int, attempts: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = f"127.0.0.1:{probe.getsockname()[1]}"
    hosts = {"NODES": "2", "RANKS_PER_NODE": "1", "RENDEZVOUS": meeting}
    jobs = [start(workplace, verb, **hosts) for _ in range(2)]
    if verb == "stop":
        wait_until_begun(workplace, {"0-0", "1-0"})
        jobs[1].send_signal(signal.SIGTERM)
    assert [ended(workplace, job) for job in jobs] == [status, status], output(workplace)
    assert (workplace / "began-1-0").read_text() == "2 at 127.0.0.1"
    assert {f"1-{attempt}" for attempt in range(attempts)} <= began(workplace)
