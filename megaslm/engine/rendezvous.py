"""The meeting of the ranks before the first collective: an absent rank is named within minutes.

The store of a job on one host listens on the loopback interface only.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from torch.distributed import DistError, DistStoreError, HashStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from megaslm.engine.network import (
    LOOPBACK,
    address_of,
    is_loopback,
    keep_to_interface_towards,
    loopback_interfaces,
    own_address_towards,
)
from megaslm.engine.rank_names import Rank, name_absent, name_ranks
from megaslm.errors import ConfigError, MegaSLMError, PeerFailed

_OUTCOME, _HEARD = "outcome", "heard"
_REMINDER_SECONDS = 30.0
# The first rank ends, and its store with it, only after the others have had this time to read a refusal.
_FAREWELL_SECONDS = 5.0
_LOOK_SECONDS = 0.05
# Between the first and the last arrival: hosts load their programs from a network drive at different speeds.
LONGEST_JOINING = timedelta(minutes=5)

_MOST_WAITING_CONNECTIONS = 2048


@dataclass(frozen=True)
class Arrival:
    """What a rank reports of itself on arrival."""

    rank: Rank
    interface: str
    """The interface of its connections."""
    is_on_loopback: bool
    """Whether the interface reaches only its own host."""
    device: str
    """The kind of device that it computes on: cuda or cpu."""

    @classmethod
    def of_this_rank(cls, rank: int, interface: str, device: str) -> Self:
        """The arrival of this process."""
        return cls(Rank(rank, socket.gethostname()), interface, interface in loopback_interfaces(), device)

    def encode(self) -> str:
        """The format that `decode` reads."""
        return json.dumps([self.rank.number, self.rank.host, self.interface, self.is_on_loopback, self.device])

    @classmethod
    def decode(cls, text: bytes) -> Self:
        """The inverse of `encode`."""
        number, host, *rest = json.loads(text)
        return cls(Rank(number, host), *rest)


def wait_for_all_ranks(store: Store, arrival: Arrival, world_size: int, limit: timedelta) -> None:
    """Returns when all ranks have arrived and their reports fit together. Called by every rank.

    Raises:
        MegaSLMError: ranks have not arrived within the limit; the message lists the absent and the present ones.
        ConfigError: ranks compute on different kinds of devices, or their interfaces cannot reach one another.
        PeerFailed: the first rank has raised one of these.
    """
    store = PrefixStore("roll", store)
    store.set(_key(arrival.rank.number), arrival.encode())
    if arrival.rank.number == 0:
        _judge(store, world_size, limit)
    else:
        _hear(store, arrival, limit)


def _judge(store: Store, world_size: int, limit: timedelta) -> None:
    missing = _wait_for_all(store, world_size, limit)
    came = [Arrival.decode(store.get(_key(rank))) for rank in range(world_size) if rank not in missing]
    refusal = _absence(missing, came, limit) if missing else refusal_of(came)
    store.set(_OUTCOME, json.dumps(None if refusal is None else [str(refusal), refusal.exit_status]))
    if refusal is not None:
        began = time.monotonic()
        while store.add(_HEARD, 0) < len(came) - 1 and time.monotonic() - began < _FAREWELL_SECONDS:
            time.sleep(_LOOK_SECONDS)
        raise refusal


def _hear(store: Store, arrival: Arrival, limit: timedelta) -> None:
    try:
        # The first rank may have started waiting a moment later.
        store.wait([_OUTCOME], limit + timedelta(seconds=_REMINDER_SECONDS))
        outcome = json.loads(store.get(_OUTCOME))
    except DistError as error:
        raise MegaSLMError(
            f"{_names([arrival])} has no answer from the first rank, which should have told by now whether all came: "
            f"{error}"
        ) from error
    if outcome is not None:
        with suppress(DistError):  # The first rank waits for a few seconds only.
            store.add(_HEARD, 1)
        raise PeerFailed(*outcome)


def _wait_for_all(store: Store, world_size: int, limit: timedelta) -> list[int]:
    """The ranks that have not arrived within the limit."""
    keys, began = [_key(rank) for rank in range(world_size)], time.monotonic()
    while True:
        left = limit.total_seconds() - (time.monotonic() - began)
        try:
            store.wait(keys, timedelta(seconds=max(0.01, min(left, _REMINDER_SECONDS))))
            return []
        except DistStoreError:
            missing = [rank for rank in range(world_size) if not store.check([_key(rank)])]
        if missing and left <= _REMINDER_SECONDS:
            return missing
        if missing:
            absent = name_absent(missing, world_size)
            reminder = f"rank 0 waits for {absent}, for {left - _REMINDER_SECONDS:.0f} s more"
            print(reminder, file=sys.stderr, flush=True)


def _absence(missing: Sequence[int], came: Sequence[Arrival], limit: timedelta) -> MegaSLMError:
    world_size = len(came) + len(missing)
    return MegaSLMError(
        f"{len(came)} of {world_size} ranks have come within {limit.total_seconds():.0f} s; missing: "
        f"{name_absent(missing, world_size)}; here: {_names(came)}. Check whether the missing ranks run, and "
        "reach this host"
    )


def refusal_of(arrivals: Sequence[Arrival]) -> ConfigError | None:
    """The reason why these ranks cannot work together; None where they can."""
    devices = {arrival.device for arrival in arrivals}
    if len(devices) > 1:
        without = [arrival for arrival in arrivals if arrival.device == "cpu"]
        return ConfigError(
            f"{len(without)} of {len(arrivals)} ranks see no GPU: {_names(without)}; look at the driver there, and "
            "at CUDA_VISIBLE_DEVICES"
        )
    enclosed = [arrival for arrival in arrivals if arrival.is_on_loopback]
    if enclosed and len({arrival.rank.host for arrival in arrivals}) > 1:
        return ConfigError(
            f"connections of {_names(enclosed)} would go over {enclosed[0].interface}, which other hosts do not "
            "reach; set MASTER_ADDR to an address of the first host in place of its name, or GLOO_SOCKET_IFNAME and "
            "NCCL_SOCKET_IFNAME to its interface"
        )
    return None


def _names(arrivals: Iterable[Arrival]) -> str:
    return name_ranks(arrival.rank for arrival in arrivals)


def _key(rank: int) -> str:
    return f"rank-{rank}"


def meet(rank: int, world_size: int, device: str, limit: timedelta = LONGEST_JOINING) -> Store:
    """The store through which the ranks find one another, once all have arrived. Called by every rank.

    Also makes their collectives use the interface over which they meet, see `network`.

    Raises:
        ConfigError: MASTER_ADDR or MASTER_PORT cannot be used, torchrun would mix up its attempts, or the ranks do not
            fit together.
        MegaSLMError: some rank has not arrived within the limit.
        PeerFailed: the first rank has raised one of these.
    """
    interface = keep_to_interface_towards(LOOPBACK if _is_for_one_host(world_size) else os.environ["MASTER_ADDR"])
    if world_size == 1:
        return HashStore()
    store = _meeting_store(rank, world_size, limit)
    wait_for_all_ranks(store, Arrival.of_this_rank(rank, interface, device), world_size, limit)
    return store


def serve_store(world_size: int) -> tuple[Store, int]:
    """A second store, served by this rank, and the port at which the others reach it. Does not wait for them.

    For a world of one rank there is no port, and its number is 0.
    """
    if world_size == 1:
        return HashStore(), 0
    store = _served(os.environ["MASTER_ADDR"], 0, world_size)
    return store, store.port


def _meeting_store(rank: int, world_size: int, limit: timedelta) -> Store:
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return _store_of_torchrun(host, port, world_size, limit)
    return _served(host, port, world_size) if rank == 0 else _reached(host, port, limit)


def _store_of_torchrun(host: str, port: int, world_size: int, limit: timedelta) -> Store:
    """The store that torchrun shares with the ranks. It still holds the addresses of the ranks of earlier attempts.

    https://github.com/pytorch/pytorch/issues/135712
    """
    # Each host counts only the attempts in which its own ranks have failed.
    if _ranks_of_this_host() != world_size and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise ConfigError(
            f"torchrun --max-restarts {os.environ['TORCHELASTIC_MAX_RESTARTS']}: on several hosts the ranks of a new "
            "attempt would meet those of the one before in torchrun's store; start torchrun with "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment, or without --max-restarts"
        )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"attempt-{attempt}", _reached(host, port, limit))


def _is_for_one_host(world_size: int) -> bool:
    """Whether every rank is on this host and MASTER_ADDR is its own address."""
    if world_size == 1:
        return True
    return _ranks_of_this_host() == world_size and is_loopback(os.environ["MASTER_ADDR"])


def _ranks_of_this_host() -> int | None:
    # torchrun and DeepSpeed's launcher have different names for it.
    count = os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE"))
    return None if count is None else int(count)


def _served(host: str, port: int, world_size: int) -> TCPStore:
    """A store at the address by which the ranks know this host; port 0 is any free port."""
    address = address_of(host)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # Other hosts may know this host by an address that the network translates, or its name may mean the loopback
    # address here and more elsewhere.
    is_ours = own_address_towards(host) == address and not is_loopback(host)
    listens_at = address if is_ours or _is_for_one_host(world_size) else ""
    try:
        listener = socket.create_server((listens_at, port), family=family, backlog=_MOST_WAITING_CONNECTIONS)
    except OSError as error:
        raise ConfigError(
            f"MASTER_PORT = {port}: cannot listen on it at {address}, {socket.gethostname()} ({error.strerror}); set "
            "another"
        ) from error
    port = listener.getsockname()[1]
    return TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def _reached(host: str, port: int, limit: timedelta) -> TCPStore:
    try:
        return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit)
    except DistError as error:
        raise MegaSLMError(
            f"the first rank, at {host}:{port}, has not been reached from {socket.gethostname()} within "
            f"{limit.total_seconds():.0f} s; check whether it runs, and whether a firewall blocks this host: {error}"
        ) from error
