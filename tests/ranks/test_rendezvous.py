"""Where ranks listen: what is for one host alone is reached from it alone, and a lone process serves no store."""

import errno
import json
import os
import signal
import socket
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from megaslm.engine import rendezvous
from megaslm.engine.distributed import all_reduce_sum, join_world, leave_world
from megaslm.engine.rendezvous import meet, serve_store
from megaslm.errors import ConfigError
from tests.forks import fork, fork_ranks, statuses_of
from tests.messages import Says, line_with
from tests.toy import make_dataset, run_config
from tests.training import start_training, with_steps

LOOPBACK_ADDRESSES = {"127.0.0.1", "::1"}


def _work_and_note(note: Path) -> None:
    """Meets, works together, and writes down at which addresses this process can be reached meanwhile."""
    world = join_world()
    served = serve_store(world.size) if world.is_first else None
    assert all_reduce_sum(torch.ones(1, device=world.device)).item() == world.size
    note.with_name(f"{note.name}-{world.rank}").write_text(json.dumps(_listening_addresses(psutil.Process())))
    leave_world()
    del served


def _listening_addresses(process: psutil.Process) -> list[str]:
    """Of the process and its children."""
    addresses = []
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # A child may end meanwhile.
            addresses += [each.laddr.ip for each in one.net_connections() if each.status == psutil.CONN_LISTEN]
    return addresses


def _noted(note: Path, rank: int) -> list[str]:
    addresses: list[str] = json.loads(note.with_name(f"{note.name}-{rank}").read_text())
    return addresses


def test_a_lone_process_serves_no_store_and_is_reached_from_its_host_alone(tmp_path: Path) -> None:
    assert statuses_of([fork(lambda: _work_and_note(tmp_path / "alone"))]) == [0]
    addresses = _noted(tmp_path / "alone", 0)
    # What remains is gloo's own, which listens even where there is nobody to talk to.
    assert len(addresses) <= 1
    assert set(addresses) <= LOOPBACK_ADDRESSES


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost"])
def test_the_ranks_of_one_host_are_reached_from_it_alone(tmp_path: Path, address: str) -> None:
    def run() -> None:
        os.environ["MASTER_ADDR"] = address
        _work_and_note(tmp_path / "two")

    assert statuses_of(fork_ranks(2, run)) == [0, 0]
    for rank in (0, 1):
        addresses = _noted(tmp_path / "two", rank)
        assert addresses
        assert set(addresses) <= LOOPBACK_ADDRESSES


def test_a_whole_training_run_of_one_process_is_reached_from_its_host_alone(tmp_path: Path) -> None:
    """With all that it starts: loaders, watchdog, logs."""
    make_dataset(tmp_path / "tokens", {("train", "a"): [40]})
    config = run_config(tmp_path / "run", tmp_path / "tokens", data={"loader_workers": 1}, log={"every_steps": 1})
    (process,) = start_training(with_steps(config, 200))
    listening: set[str] = set()
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 20):
        listening |= set(_listening_addresses(psutil.Process(process)))
        time.sleep(0.02)
    os.kill(process, signal.SIGTERM)
    assert statuses_of([process]) == [75]
    assert listening <= LOOPBACK_ADDRESSES


def test_connections_leave_the_loopback_interface_where_the_environment_says_so(tmp_path: Path) -> None:
    found = psutil.net_if_addrs()
    ethernet = next((name for name in found if not name.startswith("lo") and psutil.net_if_stats()[name].isup), None)
    if ethernet is None:
        pytest.skip("this machine has no interface but loopback")
    assert statuses_of([fork(lambda: _work_and_note(tmp_path / "told"), GLOO_SOCKET_IFNAME=ethernet)]) == [0]
    assert not set(_noted(tmp_path / "told", 0)) <= LOOPBACK_ADDRESSES


def test_ranks_that_may_be_on_several_hosts_meet_where_others_reach_them(tmp_path: Path) -> None:
    def run() -> None:
        del os.environ["LOCAL_WORLD_SIZE"]
        _work_and_note(tmp_path / "hosts")
        assert os.environ["LOCAL_WORLD_SIZE"] == "2"

    assert statuses_of(fork_ranks(2, run)) == [0, 0]
    assert not set(_noted(tmp_path / "hosts", 0)) <= LOOPBACK_ADDRESSES


def _meet(limit_seconds: float, device: str = "cpu") -> None:
    world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    meet(*world, device, timedelta(seconds=limit_seconds))


def test_ranks_that_do_not_come_are_named_and_those_that_have_are_told(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    monkeypatch.setattr(rendezvous, "_REMINDER_SECONDS", 0.8)
    monkeypatch.setenv("MEGASLM_HOSTS", "node-1:2,node-2:2")

    def run() -> None:
        if os.environ["RANK"] in ("0", "3"):
            _meet(2)

    assert statuses_of(fork_ranks(4, run)) == [1, 0, 0, 1]
    said = capfd.readouterr().err
    host = socket.gethostname()
    missing = "rank 1 on node-1 and rank 2 on node-2"
    says(line_with(said, "rank 0 ", missing, "1 s"))
    told = line_with(said, "2 of 4 ranks")
    says(told, "2 s", missing, f"ranks 0, 3 on {host}", HOST=host)
    assert said.count(told) == 2


def test_a_first_rank_that_does_not_come_is_named(capfd: pytest.CaptureFixture[str], says: Says) -> None:
    assert statuses_of(fork_ranks(2, lambda: _meet(2) if os.environ["RANK"] == "1" else None)) == [0, 1]
    told = line_with(capfd.readouterr().err, "127.0.0.1:", socket.gethostname(), "2 s")
    # Torch's reason follows.
    says.without_numbers(told.rpartition("; ")[0], HOST=socket.gethostname())


def test_a_rank_that_sees_no_gpu_is_named(capfd: pytest.CaptureFixture[str], says: Says) -> None:
    assert statuses_of(fork_ranks(2, lambda: _meet(20, ("cuda", "cpu")[int(os.environ["RANK"])]))) == [2, 2]
    host = socket.gethostname()
    says(line_with(capfd.readouterr().err, "1 of 2 ranks", f"rank 1 on {host}"), HOST=host)


def test_a_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch, says: Says) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        # What the call sets for the process is taken back with the rest.
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "NCCL_DEBUG"):
            monkeypatch.setenv(name, "lo")
        with pytest.raises(ConfigError) as refused:
            meet(0, 2, "cpu", timedelta(seconds=5))
    told, _, remedy = str(refused.value).rpartition("; ")
    assert os.strerror(errno.EADDRINUSE) in told
    says.without_numbers(f"{told.partition(' (')[0]}; {remedy}", "MASTER_PORT = ", PORT=port, HOST=socket.gethostname())


def test_torchruns_store_is_told_apart_by_attempts_or_refused(capfd: pytest.CaptureFixture[str], says: Says) -> None:
    served = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_MAX_RESTARTS": "3",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(served.port),
        "WORLD_SIZE": "2",
    }

    def start(rank: str, *, attempt: str, local_size: str = "2") -> int:
        told = {"RANK": rank, "TORCHELASTIC_RESTART_COUNT": attempt, "LOCAL_WORLD_SIZE": local_size}
        return fork(lambda: _meet(2), **environment, **told)

    assert statuses_of([start("0", attempt="0"), start("1", attempt="0")]) == [0, 0]
    assert statuses_of([start("0", attempt="1")]) == [1]
    says(line_with(capfd.readouterr().err, "1 of 2 ranks", "2 s", "rank 1"), HOST=socket.gethostname())
    assert statuses_of([start("0", attempt="1", local_size="1")]) == [2]
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in capfd.readouterr().err
