"""What launcher/hostfile.sh gives the ranks of two hosts, and that nothing of a job is left however it ends."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.faults.figures import Figures
from tests.forks import wait_until
from tests.launched import ROOT
from tests.messages import lines_with
from tests.multinode.hostfile_job import HostfileJob
from tests.multinode.hosts import Hosts

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("pdsh")]

JOB = """
import json, os, pathlib, signal, sys, time
rank = os.environ["RANK"]
if sys.argv[1] == "stop":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
pathlib.Path(f"rank-{rank}.json").write_text(json.dumps([sys.argv[1:], dict(os.environ), os.uname().nodename]))
if sys.argv[1] in ("stay", "stop") or rank == "0" and sys.argv[1] == "fail":
    time.sleep(600)
if sys.argv[1] == "fail":
    sys.exit(2)
"""


@pytest.fixture
def work_folder(tmp_path: Path) -> Path:
    """A folder whose `megaslm` only looks around; `python -m` looks there first."""
    (tmp_path / "megaslm").mkdir()
    (tmp_path / "megaslm" / "__init__.py").touch()
    (tmp_path / "megaslm" / "__main__.py").write_text(JOB)
    return tmp_path


@pytest.mark.parametrize("remote_shell", ["pdsh", "ssh"])
def test_ranks_get_arguments_and_named_variables_unchanged_and_nothing_else(
    remote_shell: str, hosts: Hosts, work_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = {
        "PLAIN": "a",
        "EMPTY": "",
        "BLANKS": "a  b",
        "QUOTES": 'it\'s "so"',
        "COMMANDS": "$(touch pwned); `touch pwned` && touch pwned",
        "SIGNS": r"\ * ? ~ # ! [a] {b} \\ $HOME",
        "PERCENT": "%h %u %n %% 50%",
    }
    for name in ("NCCL_SOCKET_IFNAME", "PYTHONHASHSEED", "UNNAMED"):
        monkeypatch.setenv(name, "7")
    arguments = ["look", "--set", "a.b=c,d", "x@y:z%h+%n^_"]
    with HostfileJob(hosts, work_folder, arguments, remote_shell=remote_shell, exported=hostile) as job:
        assert job.wait(seconds=60) == 0, job.output
    for rank in ("0", "1"):
        found, environment, _ = json.loads((work_folder / f"rank-{rank}.json").read_text())
        assert found == arguments
        assert {name: environment.get(name) for name in hostile} == hostile
        assert not {"NCCL_SOCKET_IFNAME", "PYTHONHASHSEED", "UNNAMED"} & set(environment)
        assert environment["MASTER_ADDR"] == hosts.first.address
        assert environment["MEGASLM_HOSTS"] == "node-1:1,node-2:1"
        assert (environment["RANK"], environment["WORLD_SIZE"], environment["LOCAL_SIZE"]) == (rank, "2", "1")
    assert not list(work_folder.rglob("pwned"))


@pytest.mark.parametrize("remote_shell", ["pdsh", "ssh"])
def test_ranks_are_told_the_hosts_in_the_order_of_their_numbers(
    remote_shell: str, hosts: Hosts, work_folder: Path
) -> None:
    hostfile = ("node-2 slots=1", "# the first one", "node-1 slots=2")
    with HostfileJob(hosts, work_folder, ["look"], remote_shell=remote_shell, hostfile=hostfile) as job:
        assert job.wait(seconds=60) == 0, job.output
    found = [json.loads((work_folder / f"rank-{rank}.json").read_text()) for rank in range(3)]
    assert [host for _, _, host in found] == ["node-2", "node-1", "node-1"]
    assert {environment["MEGASLM_HOSTS"] for _, environment, _ in found} == {"node-2:1,node-1:2"}


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the script on the first host makes its files."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.mark.parametrize("remote_shell", ["pdsh", "ssh"])
def test_a_script_that_is_killed_with_its_process_group_leaves_nothing_on_any_host(
    remote_shell: str, hosts: Hosts, work_folder: Path, scratch: Path, figures: Figures
) -> None:
    with HostfileJob(hosts, work_folder, ["stay"], remote_shell=remote_shell) as job:
        _wait_for_ranks(work_folder)
        job.send_to_group(signal.SIGKILL)
        began = time.monotonic()
        wait_until(lambda: hosts.processes() == {})
    assert not list(scratch.iterdir())
    figures.record("launcher_killed", **{f"{remote_shell}_seconds": time.monotonic() - began})


@pytest.mark.parametrize(("remote_shell", "told"), [("pdsh", signal.SIGINT), ("ssh", signal.SIGTERM)])
def test_a_signal_for_its_whole_process_group_tells_the_ranks_once(
    remote_shell: str, told: signal.Signals, hosts: Hosts, work_folder: Path, scratch: Path
) -> None:
    with HostfileJob(hosts, work_folder, ["stop"], remote_shell=remote_shell) as job:
        _wait_for_ranks(work_folder)
        job.send_to_group(told)
        assert job.wait(seconds=30) == 75, job.output
    assert not list(scratch.iterdir())


PDSH, ITS_WRAPPER = "pdsh -S ", f"bash {ROOT}/launcher/pdsh/pdsh -S "


@pytest.mark.parametrize("killed", [(PDSH,), (PDSH, ITS_WRAPPER)], ids=["alone", "with its wrapper"])
def test_a_job_whose_pdsh_is_killed_has_failed(
    killed: tuple[str, ...], hosts: Hosts, work_folder: Path, scratch: Path
) -> None:
    """DeepSpeed's launcher takes such a job for done."""
    with HostfileJob(hosts, work_folder, ["stay"]) as job:
        _wait_for_ranks(work_folder)
        chosen = [process for process, command in hosts.first.processes().items() if command.startswith(killed)]
        assert len(chosen) == len(killed)
        for process in chosen:
            os.kill(process, signal.SIGKILL)
        assert job.wait(seconds=30) not in (0, 75), job.output
    assert not list(scratch.iterdir())


def test_a_job_that_ssh_does_not_reach_any_more_is_not_taken_for_told(hosts: Hosts, work_folder: Path) -> None:
    """As where the agent with the key has gone with its terminal."""
    keys = "/etc/ssh/authorized_keys"
    with HostfileJob(hosts, work_folder, ["stay"]) as job:
        _wait_for_ranks(work_folder)
        hosts.first.run("mv", keys, f"{keys}.away")
        try:
            job.send(signal.SIGTERM)
            job.wait_until_it_says("2 of the 2 hosts were not told to stop: ssh does not get there any more")
            assert job.is_running
        finally:
            hosts.first.run("mv", f"{keys}.away", keys)
        for process, command in hosts.second.processes().items():
            if "-u -m megaslm" in command:
                os.kill(process, signal.SIGKILL)
        assert job.wait(seconds=90) not in (0, 75), job.output


@pytest.mark.parametrize("remote_shell", ["pdsh", "ssh"])
def test_a_host_that_fails_before_the_ranks_meet_ends_the_job_after_a_minute(
    remote_shell: str, hosts: Hosts, work_folder: Path, figures: Figures
) -> None:
    """Where the ranks have met, those of the other hosts end much sooner by themselves."""
    with HostfileJob(hosts, work_folder, ["fail"], remote_shell=remote_shell) as job:
        _wait_for_ranks(work_folder)
        began = time.monotonic()
        assert job.wait(seconds=90) not in (0, 75)
    assert lines_with(job.output, " 60 s ")
    figures.record("node_failed_early", **{f"{remote_shell}_seconds": time.monotonic() - began})


def test_a_second_telling_after_ten_seconds_ends_a_job_that_does_not_stop(hosts: Hosts, work_folder: Path) -> None:
    with HostfileJob(hosts, work_folder, ["stay"]) as job:
        _wait_for_ranks(work_folder)
        # It does not listen, and would be killed by the first telling only after twenty seconds.
        job.send(signal.SIGTERM)
        time.sleep(11)
        assert job.is_running
        job.send(signal.SIGTERM)
        assert job.wait(seconds=30) not in (0, 75)


def _wait_for_ranks(work_folder: Path) -> None:
    wait_until(lambda: len(list(work_folder.glob("rank-*.json"))) == 2)
