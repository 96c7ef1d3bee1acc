"""A job in which a rank is stopped, killed, stuck or broken, as its watchdog finds and ends it."""

import os
import re
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist

from megaslm.engine.cpu_group import CpuGroup
from megaslm.engine.distributed import World, join_world, leave_world
from megaslm.engine.heartbeat import heartbeat
from megaslm.errors import DataError, Stopped
from megaslm.health import verdict
from megaslm.health.heartbeats import HeartbeatStore
from megaslm.health.verdict import Heartbeat
from megaslm.health.watchdog import Watchdog
from tests.forks import fork_ranks, statuses_of
from tests.messages import Says, line_with

SILENCE_SECONDS = 3.0
HANG_SECONDS = 3.0
LONG_SECONDS = 600.0
HOST = socket.gethostname()
SETTLED_SECONDS = 1.5
ENDED_WITHIN_SECONDS = 10.0
"""After a limit. It is 3 s where the ranks get the processor when they ask for it, which tests cannot count on."""


@dataclass(frozen=True)
class Outcome:
    """How the ranks of a job ended."""

    statuses: list[int]
    said: str
    seconds: float
    """Since a rank began its work last."""

    def said_by(self, rank: int) -> str:
        """The lines that a rank wrote for itself."""
        return "\n".join(line for line in self.said.splitlines() if line.startswith(f"rank {rank}:"))

    def has_stacks_of(self, rank: int) -> bool:
        """Whether the rank's main thread is shown; the work of all tests is a function called `work`."""
        shown = self.said.partition(f"rank {rank}: its stacks\n")[2].partition("\nrank ")[0]
        return "in work" in shown


def finding_of(outcome: Outcome, rank: int, *, on: int) -> str:
    """What a rank has found of another, `on`."""
    found = re.search(rf"rank {on} \(host .*", outcome.said_by(rank))
    assert found is not None, outcome.said
    return found[0]


Work = Callable[[World], None]


@pytest.fixture
def job(capfd: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    def run(
        work: Work, *, ranks: int = 2, silence_seconds: float = SILENCE_SECONDS, hang_seconds: float = LONG_SECONDS
    ) -> Outcome:
        well = tmp_path_factory.mktemp("job") / "well"

        def rank() -> None:
            world = join_world()
            with Watchdog(world, silence_seconds=silence_seconds, hang_seconds=hang_seconds):
                together()
                well.touch()
                work(world)
            leave_world()

        statuses = statuses_of(fork_ranks(ranks, rank))
        return Outcome(statuses, capfd.readouterr().err, time.time() - well.stat().st_mtime)

    return run


def settle() -> None:
    """Until the other ranks know where this one is: what follows is found from here on."""
    time.sleep(SETTLED_SECONDS)


def together() -> None:
    """A collective."""
    dist.all_reduce(torch.ones(1))


def sleep_for_ever() -> None:
    while True:
        time.sleep(60)


@pytest.mark.parametrize(("ranks", "stopped"), [(2, 0), (3, 1)])
def test_a_stopped_rank_is_found_and_killed(job: Callable[..., Outcome], ranks: int, stopped: int, says: Says) -> None:
    def work(world: World) -> None:
        heartbeat("step", 7)
        settle()
        if world.rank == stopped:
            os.kill(os.getpid(), signal.SIGSTOP)
        together()

    outcome = job(work, ranks=ranks)
    for rank, status in enumerate(outcome.statuses):
        assert status == (-signal.SIGKILL if rank == stopped else 1)
    for rank in set(range(ranks)) - {stopped}:
        says.without_numbers(finding_of(outcome, rank, on=stopped), "'step' of step 7 ", "(T)", HOST=HOST)
        assert outcome.has_stacks_of(rank)
    assert outcome.seconds < SETTLED_SECONDS + SILENCE_SECONDS + ENDED_WITHIN_SECONDS


@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("others", ["in a collective", "asleep"])
def test_a_killed_rank_is_found_at_once(job: Callable[..., Outcome], killed: int, others: str) -> None:
    """Whether the others' collectives fail, or notice nothing."""

    def work(world: World) -> None:
        heartbeat("data", 3)
        settle()
        if world.rank == killed:
            os.kill(os.getpid(), signal.SIGKILL)
        if others == "in a collective":
            together()
        sleep_for_ever()

    outcome = job(work, silence_seconds=LONG_SECONDS)
    assert outcome.statuses[killed] == -signal.SIGKILL
    assert outcome.statuses[1 - killed] == 1
    assert "'data' of step 3 " in finding_of(outcome, 1 - killed, on=killed)
    if others == "asleep":
        assert outcome.has_stacks_of(1 - killed)
    assert outcome.seconds < SETTLED_SECONDS + ENDED_WITHIN_SECONDS


@pytest.mark.parametrize("stuck", [0, 1])
def test_of_a_deadlock_the_rank_behind_is_to_blame(job: Callable[..., Outcome], stuck: int, says: Says) -> None:
    def work(world: World) -> None:
        heartbeat("data", 5)
        if world.rank == stuck:
            sleep_for_ever()
        heartbeat("step", 5)
        together()

    outcome = job(work, hang_seconds=HANG_SECONDS)
    assert outcome.statuses == [1, 1]
    for rank in range(2):
        finding = finding_of(outcome, rank, on=stuck)
        says.without_numbers(finding, "'data' of step 5 ", "1 of 2 ranks", HOST=HOST)
        assert outcome.has_stacks_of(rank)
    assert outcome.seconds < HANG_SECONDS + ENDED_WITHIN_SECONDS


def test_who_only_asks_the_others_is_not_to_blame(job: Callable[..., Outcome], says: Says) -> None:
    def work(world: World) -> None:
        cpu_group = CpuGroup(world)
        heartbeat("save", 8)
        if world.rank == 1:
            sleep_for_ever()
        cpu_group.any(False)

    outcome = job(work, hang_seconds=HANG_SECONDS)
    assert outcome.statuses == [1, 1]
    says.without_numbers(finding_of(outcome, 0, on=1), "'save' of step 8 ", HOST=HOST)


@pytest.mark.slow
def test_at_one_place_who_is_in_no_collective_is_to_blame(job: Callable[..., Outcome], says: Says) -> None:
    def work(world: World) -> None:
        heartbeat("save", 8)
        if world.rank == 2:
            sleep_for_ever()
        together()

    outcome = job(work, ranks=3, hang_seconds=HANG_SECONDS)
    assert outcome.statuses == [1, 1, 1]
    says.without_numbers(finding_of(outcome, 0, on=2), "2 of 3 ranks", HOST=HOST)


def test_a_process_alone_finds_that_it_hangs(job: Callable[..., Outcome]) -> None:
    def work(world: World) -> None:
        heartbeat("validate", 2)
        sleep_for_ever()

    outcome = job(work, ranks=1, hang_seconds=HANG_SECONDS)
    assert outcome.statuses == [1]
    assert "rank 0 (" in outcome.said_by(0)
    assert outcome.has_stacks_of(0)


@pytest.mark.parametrize("failing", [0, 1])
def test_who_does_not_notice_a_failure_follows_it(
    job: Callable[..., Outcome], failing: int, monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    """As NCCL's collectives, which wait for minutes; a sleep stands for them."""
    monkeypatch.setattr(verdict, "_GRACE_AFTER_A_FAILURE_SECONDS", 1.0)

    def work(world: World) -> None:
        if world.rank == failing:
            raise DataError("the shard is broken")
        sleep_for_ever()

    outcome = job(work)
    assert outcome.statuses == [2, 2]
    says.without_numbers(finding_of(outcome, 1 - failing, on=failing), "the shard is broken", HOST=HOST)
    assert outcome.has_stacks_of(1 - failing)


@pytest.mark.parametrize(("error", "status"), [(DataError("broken"), 2), (Stopped("told to"), 75), (ValueError(), 1)])
def test_who_fails_with_another_ends_as_that_one(
    job: Callable[..., Outcome], error: Exception, status: int, says: Says
) -> None:
    """Gloo's collectives say at once that a connection is gone, which is not the reason."""

    def work(world: World) -> None:
        if world.rank == 1:
            raise error
        together()

    outcome = job(work)
    assert outcome.statuses == [status, status]
    says.without_numbers(line_with(outcome.said, "rank 0: ", "rank 1 ("), HOST=HOST)
    assert "its stacks" not in outcome.said


def test_after_its_goodbye_a_rank_asks_nothing_more_of_the_first(
    job: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may be gone by then, with its store; torch would tell of that by a page of C++."""
    give = HeartbeatStore.give

    def give_and_be_held_up(board: HeartbeatStore, beat: Heartbeat) -> None:
        give(board, beat)
        if beat.is_last and beat.rank == 1:
            time.sleep(1.0)

    monkeypatch.setattr(HeartbeatStore, "give", give_and_be_held_up)

    def work(world: World) -> None:
        raise Stopped("told to")

    outcome = job(work)
    assert outcome.statuses == [75, 75]
    assert outcome.said == "told to\n" * 2


@pytest.mark.slow
def test_a_slow_job_is_left_alone(job: Callable[..., Outcome]) -> None:
    """Each rank takes its time in turn, one leaves late, and the job lasts longer than the limits."""

    def work(world: World) -> None:
        for step in range(5):
            heartbeat("step", step)
            time.sleep(1.2 if step % 2 == world.rank else 0)
            together()
        if world.rank == 1:
            time.sleep(1.2)

    outcome = job(work, silence_seconds=5.0, hang_seconds=5.0)
    assert outcome.statuses == [0, 0]
    assert not outcome.said


@pytest.mark.slow
def test_a_job_that_was_suspended_is_left_alone() -> None:
    """As a scheduler does to let another job go first."""

    def rank() -> None:
        world = join_world()
        with Watchdog(world, silence_seconds=4.0, hang_seconds=4.0):
            for step in range(20):
                heartbeat("step", step)
                time.sleep(0.2)
                together()
        leave_world()

    processes = fork_ranks(2, rank)
    time.sleep(2.5)
    os.killpg(processes[0], signal.SIGSTOP)
    time.sleep(6)
    os.killpg(processes[0], signal.SIGCONT)
    assert statuses_of(processes) == [0, 0]
