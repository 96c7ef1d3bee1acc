"""Ranks of two hosts that meet, whatever else their hosts are called and have."""

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.launched import ROOT
from tests.messages import line_with, lines_with
from tests.multinode.hostfile_job import free_port
from tests.multinode.hosts import Hosts

pytestmark = pytest.mark.slow

RANK = """
import datetime, os, sys, torch
from megaslm.engine import distributed
from megaslm.errors import MegaSLMError
distributed.LONGEST_JOINING = datetime.timedelta(seconds=5)
try:
    world = distributed.join_world()
except MegaSLMError as error:
    print(error)
    distributed.end_process(error.exit_status)
print(os.environ["GLOO_SOCKET_IFNAME"], distributed.all_reduce_sum(torch.ones(1)).item())
distributed.leave_world()
distributed.end_process(0)
"""


def meet(
    hosts: Hosts,
    folder: Path,
    *,
    master: str,
    program: str = RANK,
    interfaces: Sequence[str | None] = (None,),
    **environment: str,
) -> list[tuple[int, str]]:
    """The exit status of each rank and what it said: on each host one for each of `interfaces`, which it is to use."""
    here = len(interfaces)
    shared = {"WORLD_SIZE": str(2 * here), "LOCAL_WORLD_SIZE": str(here), "PYTHONPATH": str(ROOT), **environment}
    shared |= {"MASTER_ADDR": master, "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    outputs = [folder / f"rank-{rank}.txt" for rank in range(2 * here)]
    ranks = []
    for rank, output in enumerate(outputs):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank % here)}
        if interface := interfaces[rank % here]:
            own["GLOO_SOCKET_IFNAME"] = interface
        with output.open("wb") as file:
            host = hosts.all[rank // here]
            ranks.append(host.start(sys.executable, "-c", program, environment={**shared, **own}, output=file))
    return [(rank.wait(timeout=60), output.read_text()) for rank, output in zip(ranks, outputs, strict=True)]


@pytest.fixture
def more_interfaces(hosts: Hosts) -> Iterator[None]:
    """Each host has one more, which comes first and leads nowhere: what a container bridge is to NCCL and gloo."""
    for number, host in enumerate(hosts.all, 1):
        host.run("ip", "link", "add", "bridge0", "type", "veth", "peer", "name", "container0")
        host.run("ip", "address", "add", f"10.88.0.{number}/24", "dev", "bridge0")
        for name in ("bridge0", "container0"):
            host.run("ip", "link", "set", name, "up")
    yield
    for host in hosts.all:
        host.run("ip", "link", "delete", "bridge0")


@pytest.fixture
def own_names_on_loopback(hosts: Hosts, tmp_path: Path) -> Iterator[None]:
    """As Debian installs it: a host finds a loopback address under its own name."""
    for host, other in (hosts.all, hosts.all[::-1]):
        table = tmp_path / f"{host.name}.hosts"
        table.write_text(f"127.0.0.1 localhost\n127.0.1.1 {host.name}\n{other.address} {other.name}\n")
        host.run("mount", "--bind", table, "/etc/hosts")
    yield
    for host in hosts.all:
        host.run("umount", "/etc/hosts")


@pytest.mark.usefixtures("more_interfaces", "own_names_on_loopback")
def test_they_talk_over_the_interface_that_leads_to_the_first_host(hosts: Hosts, tmp_path: Path) -> None:
    for status, said in meet(hosts, tmp_path, master=hosts.first.address):
        assert status == 0, said
        assert said.endswith("eth0 2.0\n")


@pytest.mark.usefixtures("own_names_on_loopback")
def test_a_name_that_means_loopback_on_the_first_host_is_refused_there(hosts: Hosts, tmp_path: Path) -> None:
    (status, said), other = meet(hosts, tmp_path, master="node-1")
    assert status == other[0] == 2
    assert lines_with(said, "rank 0 on node-1 ", " lo,", "MASTER_ADDR")


@pytest.mark.usefixtures("more_interfaces")
def test_hosts_that_do_not_reach_one_another_end_within_the_limit(hosts: Hosts, tmp_path: Path) -> None:
    began = time.monotonic()
    found = meet(hosts, tmp_path, master=hosts.first.address, GLOO_SOCKET_IFNAME="bridge0")
    for host, (status, said) in zip(hosts.all, found, strict=True):
        assert status == 1
        assert lines_with(said, f"{host.name} ", "bridge0")
    assert time.monotonic() - began < 20


CHECK = """
from megaslm.engine.distributed import end_process, join_world, leave_world
from megaslm.health.preflight import preflight
from megaslm.health.findings import Requirements
world = join_world()
lines = preflight(world, Requirements(settings={}))
if world.is_first:
    print(*lines, sep="\\n")
leave_world()
end_process(0)
"""


@pytest.fixture
def a_second_cable(hosts: Hosts) -> Iterator[None]:
    """Between the two hosts, over which the first one sends at 50 MB/s at most."""
    if shutil.which("tc") is None:
        pytest.skip("tc is missing: apt-get install iproute2")
    hosts.add_link("eth1", "10.78.0")
    limit = ("tbf", "rate", "400mbit", "burst", "100kb", "latency", "1s")
    try:
        hosts.first.run("tc", "qdisc", "add", "dev", "eth1", "root", *limit)
        yield
    finally:
        hosts.first.run("ip", "link", "delete", "eth1")


@pytest.mark.usefixtures("a_second_cable")
def test_a_slow_link_is_named_by_its_two_ranks(hosts: Hosts, tmp_path: Path) -> None:
    """Each host has two ranks, and each of them a cable to the one of its number on the other host."""
    (status, said), *others = meet(
        hosts, tmp_path, master=hosts.first.address, program=CHECK, interfaces=["eth0", "eth1"]
    )
    assert [status, *(other[0] for other in others)] == [0, 0, 0, 0], said
    assert line_with(said, "warning: ").startswith("warning: rank 1 on node-1 to rank 3 on node-2: 0.0")
    assert lines_with(said, "preflight: ", "4 ranks", "2 hosts")
