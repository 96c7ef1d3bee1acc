import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from megaslm.errors import ConfigError
from tests.forks import fork, statuses_of, wait_until
from tests.injection.faults import Fault, InjectedFault, arm, inject, injecting, spoiled
from tests.messages import Says


@pytest.fixture(autouse=True)
def nothing_comes_afterwards() -> Iterator[None]:
    yield
    arm("")


def reaching(point: str, step: int) -> Callable[[], None]:
    """A rank that reaches the point, and lives on."""

    def run() -> None:
        inject(point, step)
        time.sleep(60)

    return run


def state_of(process: int) -> str:
    """As /proc has it: R, S, T …"""
    return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0]


def children_of(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_a_fault_says_what_is_left_out() -> None:
    assert Fault.parse("kill@rank1:step7") == Fault("kill", 1, 7, "step", 0)
    assert Fault.parse("term@rank0:step0:start:attempt2") == Fault("term", 0, 0, "start", 2)
    assert Fault.parse("stop@rank12:step340:attempt3") == Fault("stop", 12, 340, "step", 3)
    assert Fault.parse(str(Fault("slow", 3, 9, "write", 1))) == Fault("slow", 3, 9, "write", 1)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("kill", "ACTION@rankR:stepN[:POINT][:attemptA]"),
        ("kill@rank-1:step7", "'kill@rank-1:step7'"),
        ("kill@rank1:step7:save:attempt", "kill@rank1:step7:save:attempt"),
        ("kill@rank1:step7;", "''"),
        ("melt@rank1:step7", "'melt'"),
        ("kill@rank1:step7:lunch", "'lunch'"),
        ("nan@rank1:step7:save", "'save'"),
    ],
)
def test_a_malformed_variable_says_what_is_allowed(text: str, named: str, says: Says) -> None:
    with pytest.raises(ConfigError) as refused:
        arm(text)
    says(refused, named)


def test_a_command_has_the_faults_of_its_environment() -> None:
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            "from megaslm.engine.heartbeat import heartbeat; heartbeat('data', 1); heartbeat('save', 2)",
        ],
        env={**os.environ, **injecting("kill@rank0:step2:save")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == -signal.SIGKILL
    found = re.search(r"injected fault kill@rank0:step2:save:attempt0 at ([\d.]+)\n", ran.stderr)
    assert found is not None
    assert abs(time.time() - float(found[1])) < 60


def test_nothing_happens_elsewhere_or_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    arm(
        "raise@rank0:step7:attempt2; raise@rank1:step8:attempt2; raise@rank1:step7:data:attempt2; raise@rank1:step7;"
        "raise@rank1:step7:save:attempt2"
    )
    inject("step", 7)
    with pytest.raises(InjectedFault, match="raise@rank1:step7:save:attempt2"):
        inject("save", 7)
    inject("save", 7)


@pytest.mark.parametrize("action", ["kill", "term", "usr1"])
def test_a_signal_ends_the_process(action: str) -> None:
    arm(f"{action}@rank0:step7")
    expected = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "usr1": signal.SIGUSR1}
    assert statuses_of([fork(reaching("step", 7))]) == [-expected[action]]


@pytest.mark.parametrize(("action", "state"), [("stop", "T"), ("hang", "S")])
def test_a_stopped_or_hung_process_comes_no_further(action: str, state: str, capfd: pytest.CaptureFixture[str]) -> None:
    arm(f"{action}@rank0:step7")

    def run() -> None:
        inject("step", 7)
        print("came further", file=sys.stderr)

    process = fork(run)
    said = ""
    while "injected fault" not in said:
        said += capfd.readouterr().err
        time.sleep(0.01)
    wait_until(lambda: state_of(process) == state)
    time.sleep(0.2)
    assert state_of(process) == state
    os.kill(process, signal.SIGKILL)
    assert statuses_of([process]) == [-signal.SIGKILL]
    assert "came further" not in said + capfd.readouterr().err


def test_a_slow_process_runs_half_of_the_time_and_takes_its_helper_along() -> None:
    arm("slow@rank0:step7")
    process = fork(reaching("step", 7))
    wait_until(lambda: bool(children_of(process)))
    (helper,) = children_of(process)
    wait_until(lambda: state_of(process) == "T")
    seen = []
    for _ in range(120):
        seen.append(state_of(process))
        time.sleep(0.01)
    assert 0.3 < seen.count("T") / len(seen) < 0.7
    assert sum(before != after for before, after in itertools.pairwise(seen)) >= 6
    os.kill(process, signal.SIGKILL)
    assert statuses_of([process]) == [-signal.SIGKILL]
    wait_until(lambda: not Path(f"/proc/{helper}").exists())


def test_numbers_are_spoiled_where_it_is_asked_for() -> None:
    arm("nan@rank0:step7:data")
    value = torch.ones(3)
    assert spoiled("data", 6, value) is value
    assert spoiled("step", 7, value) is value
    inject("data", 7)
    assert spoiled("data", 7, value).isnan().all()
    assert spoiled("data", 7, value) is value
