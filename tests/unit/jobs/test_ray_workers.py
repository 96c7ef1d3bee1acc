"""What a job on Ray refuses before it has a cluster, and what a node refuses to work on. Neither needs Ray."""

import fcntl
import os
import socket
import sys
from pathlib import Path

import pytest

from megaslm.errors import ConfigError, LaunchError
from megaslm.jobs.ray_workers import ADDRESS, _run, ray_cluster
from tests.messages import Says


def refusal_of(address: str | None) -> pytest.ExceptionInfo[ConfigError | LaunchError]:
    with pytest.raises((ConfigError, LaunchError)) as refused, ray_cluster(address):
        pass
    return refused


@pytest.mark.parametrize("address", [None, "nowhere", "nowhere:", ":6379", "127.0.0.1:999999"])
def test_an_address_of_no_head_is_refused(address: str | None, monkeypatch: pytest.MonkeyPatch, says: Says) -> None:
    monkeypatch.delenv(ADDRESS, raising=False)
    refused = refusal_of(address)
    assert refused.type is ConfigError
    says(refused, ADDRESS if address is None else address)


def test_an_address_where_nobody_listens_is_refused_before_ray_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        refused = refusal_of(address)
    assert refused.type is LaunchError
    assert address in str(refused.value)


def test_a_head_without_ray_on_this_machine_is_refused(monkeypatch: pytest.MonkeyPatch, says: Says) -> None:
    # What it sets for Ray stays in this test.
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setitem(sys.modules, "ray", None)
    with socket.create_server(("127.0.0.1", 0)) as head:
        refused = refusal_of(f"127.0.0.1:{head.getsockname()[1]}")
    assert refused.type is ConfigError
    says(refused, "EXTRAS=ray")


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the job's first process locks. The test's folder is restored after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "gethostname", lambda: "node-7")
    return tmp_path / "shared" / ".locked"


def refusal_of_a_node(held: Path, worked: list[int]) -> str | None:
    return _run(worked.append, 3, str(held.parent), str(held))


def test_a_node_that_does_not_see_the_folder_does_no_work(held: Path, says: Says) -> None:
    worked: list[int] = []
    says(refusal_of_a_node(held, worked) or "", held.parent, "node-7")
    held.parent.mkdir()
    says(refusal_of_a_node(held, worked) or "", held, "node-7")
    assert worked == []
    # A file that it made would be one of its own.
    assert not held.exists()


def test_a_node_that_could_take_the_lock_does_no_work(held: Path, says: Says) -> None:
    held.parent.mkdir()
    held.touch()
    worked: list[int] = []
    says(refusal_of_a_node(held, worked) or "", held, "node-7")
    assert worked == []


def test_a_node_that_the_lock_keeps_out_works_in_the_jobs_folder(held: Path) -> None:
    held.parent.mkdir()
    worked: list[int] = []
    with held.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert refusal_of_a_node(held, worked) is None
    assert worked == [3]
    assert Path.cwd() == held.parent
