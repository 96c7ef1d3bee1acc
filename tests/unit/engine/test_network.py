"""The interface that collectives use, and who may work together."""

import os
import socket

import psutil
import pytest

from megaslm.engine.network import (
    address_of,
    is_loopback,
    keep_to_interface_towards,
    loopback_interfaces,
    own_address_towards,
)
from megaslm.engine.rank_names import Rank
from megaslm.engine.rendezvous import Arrival, refusal_of
from megaslm.errors import ConfigError
from tests.messages import Says

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "NCCL_DEBUG")


@pytest.fixture(autouse=True)
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment says nothing of the network; what a test sets is taken back."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "to be taken back")
        monkeypatch.delenv(name)


def ethernet() -> tuple[str, str]:
    """An interface of this machine that is not loopback, and its address."""
    for name, addresses in psutil.net_if_addrs().items():
        for each in addresses:
            if each.family == socket.AF_INET and not is_loopback(each.address) and psutil.net_if_stats()[name].isup:
                return name, each.address
    pytest.skip("this machine has no interface but loopback")


def test_an_address_of_this_host_is_on_the_interface_that_has_it() -> None:
    name, address = ethernet()
    assert own_address_towards(address) == address
    assert keep_to_interface_towards(address) == name
    assert [os.environ[variable] for variable in VARIABLES] == [name, f"={name}", "WARN"]


def test_this_host_itself_is_reached_over_loopback() -> None:
    assert {keep_to_interface_towards("localhost")} == loopback_interfaces()


def test_what_the_environment_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    assert keep_to_interface_towards("127.0.0.1") == "mine"
    assert os.environ["NCCL_SOCKET_IFNAME"] == "=lo"
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ours")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    # No way is looked for where nobody asks for it.
    assert keep_to_interface_towards("nowhere.invalid") == "mine"
    assert [os.environ[variable] for variable in VARIABLES] == ["mine", "ours", "INFO"]


def test_a_name_that_is_no_address_is_refused(says: Says) -> None:
    with pytest.raises(ConfigError) as refused:
        address_of("nowhere.invalid")
    says(refused, "MASTER_ADDR = nowhere.invalid", REASON=refused.value.__cause__, HOST=socket.gethostname())


def arrivals(*places: tuple[str, bool], device: str = "cuda") -> list[Arrival]:
    return [
        Arrival(Rank(rank, host), "lo" if enclosed else "eth0", enclosed, device)
        for rank, (host, enclosed) in enumerate(places)
    ]


def test_hosts_that_reach_one_another_may_work_together() -> None:
    assert refusal_of(arrivals(("node-1", False), ("node-1", False), ("node-2", False))) is None
    assert refusal_of(arrivals(("node-1", True), ("node-1", True))) is None


def test_a_host_that_would_talk_over_loopback_is_named(says: Says) -> None:
    refusal = refusal_of(arrivals(("node-1", True), ("node-1", True), ("node-2", False)))
    assert refusal is not None
    says(refusal, "0-1", "node-1", "lo")


def test_ranks_without_a_gpu_are_named_among_others(says: Says) -> None:
    found = arrivals(("node-1", False), ("node-2", False), ("node-2", False), ("node-3", False))
    found[1:3] = [Arrival(Rank(rank, "node-2"), "eth0", False, "cpu") for rank in (1, 2)]
    says(refusal_of(found), "2", "4", "1-2", "node-2")
    assert refusal_of(arrivals(("node-1", False), ("node-2", False), device="cpu")) is None
