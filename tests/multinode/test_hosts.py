"""The two hosts themselves: what they share and what they do not, and what is left of them."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.forks import fork, statuses_of, wait_until
from tests.multinode.host import why_there_are_none
from tests.multinode.hosts import Hosts


def test_each_has_its_own_name_processes_and_shared_memory_and_lets_the_other_in(hosts: Hosts, tmp_path: Path) -> None:
    for host, other in (hosts.all, hosts.all[::-1]):
        assert host.run("hostname").strip() == host.name
        host.run("touch", f"/dev/shm/{host.name}", tmp_path / host.name)
        assert host.run("ssh", other.name, "hostname -I").split() == [other.address]
    sleeper = hosts.second.start("sleep", "600")
    wait_until(lambda: hosts.processes() == {"node-2": ["sleep 600"]})
    hosts.second.send(sleeper, signal.SIGTERM)
    assert sleeper.wait(timeout=10) == -signal.SIGTERM
    assert [host.run("ls", "/dev/shm").split() for host in hosts.all] == [["node-1"], ["node-2"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["node-1", "node-2"]


def test_the_link_is_cut_and_joined(hosts: Hosts) -> None:
    hosts.cut_link()
    hosts.first.run("ssh", "-o", "ConnectTimeout=1", hosts.second.name, "true", expect_status=255)
    hosts.join_link()
    # A first packet that comes too early is sent again only after a second.
    hosts.first.run("ssh", "-o", "ConnectTimeout=10", hosts.second.name, "true")


def test_a_test_run_that_is_killed_leaves_no_process_and_the_next_one_removes_its_networks(tmp_path: Path) -> None:
    if reason := why_there_are_none():
        pytest.skip(reason)

    def run() -> None:
        with Hosts(tmp_path / "killed") as hosts:
            hosts.second.start("sleep", "600")
            (tmp_path / "there").touch()
            time.sleep(600)

    killed = fork(run)
    wait_until((tmp_path / "there").exists)
    os.kill(killed, signal.SIGKILL)
    assert statuses_of([killed]) == [-signal.SIGKILL]
    networks = _networks_of(killed)
    assert len(networks) == 2
    wait_until(lambda: not any(_ip("netns", "pids", network) for network in networks))
    with Hosts(tmp_path / "next"):
        assert _networks_of(killed) == []
        assert len(_networks_of(os.getpid())) >= 2
    assert _networks_of(killed) == []


def _networks_of(process: int) -> list[str]:
    names = [line.split()[0] for line in _ip("netns", "list").splitlines() if line.strip()]
    return [name for name in names if name.startswith(f"megaslm-{process}-")]


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout
