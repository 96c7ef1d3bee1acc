"""Where the ranks meet. What is for one host alone listens on its loopback interface alone.

By itself torch's store listens on every interface, and who can write into it can make ranks unpickle what he likes.
"""

import os
import socket
from datetime import timedelta

from torch.distributed import DistError, HashStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from megaslm.engine.network import (
    LOOPBACK,
    address_of,
    is_loopback,
    keep_to_interface_towards,
    own_address_towards,
)
from megaslm.engine.roll_call import Arrival, call_roll
from megaslm.errors import ConfigError, MegaSLMError

# Between the first rank that comes and the last: hosts do not read their programs from a network drive equally fast.
LONGEST_JOINING = timedelta(minutes=5)

_MOST_WAITING_CONNECTIONS = 2048


def meet(rank: int, world_size: int, device: str, limit: timedelta = LONGEST_JOINING) -> Store:
    """The store by which the ranks find one another, once all have come; called by every rank.

    Also lets the connections of their collectives use the interface over which they meet, as `network` tells.

    Raises:
        ConfigError: MASTER_ADDR or MASTER_PORT cannot be used, torchrun would mix up its attempts, or the ranks do not
            fit together.
        MegaSLMError: some rank has not come within the limit.
        PeerFailed: the first rank has raised one of these.
    """
    interface = keep_to_interface_towards(LOOPBACK if _is_for_one_host(world_size) else os.environ["MASTER_ADDR"])
    if world_size == 1:
        return HashStore()
    store = _meeting_store(rank, world_size, limit)
    call_roll(store, Arrival.of_this_rank(rank, interface, device), world_size, limit)
    return store


def serve_store(world_size: int) -> tuple[Store, int]:
    """A store beside the one of the meeting, served by this rank, and the port at which the others reach it.

    Nobody is waited for. For one rank alone there is no port, and its number is 0.
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
    """The store that torchrun lets the ranks share, which still holds the addresses of the ranks of earlier attempts.

    https://github.com/pytorch/pytorch/issues/135712
    """
    # Each host counts the attempts that its own ranks have failed in.
    if _ranks_of_this_host() != world_size and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise ConfigError(
            f"torchrun --max-restarts {os.environ['TORCHELASTIC_MAX_RESTARTS']}: on several hosts the ranks of a new "
            "attempt would meet those of the one before in torchrun's store; start torchrun with "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment, or without --max-restarts"
        )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"attempt-{attempt}", _reached(host, port, limit))


def _is_for_one_host(world_size: int) -> bool:
    """Whether every rank is on this host and the address to meet at is its own."""
    if world_size == 1:
        return True
    return _ranks_of_this_host() == world_size and is_loopback(os.environ["MASTER_ADDR"])


def _ranks_of_this_host() -> int | None:
    # torchrun and DeepSpeed's launcher call it by different names.
    count = os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE"))
    return None if count is None else int(count)


def _served(host: str, port: int, world_size: int) -> TCPStore:
    """A store at a port, or at any where it is 0, of the address by which the ranks know this host."""
    address = address_of(host)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # Other hosts may know this one by an address that the network translates, or by more than the loopback address
    # that its name means here.
    is_ours = own_address_towards(host) == address and not is_loopback(host)
    listens_at = address if is_ours or _is_for_one_host(world_size) else ""
    try:
        listener = socket.create_server((listens_at, port), family=family, backlog=_MOST_WAITING_CONNECTIONS)
    except OSError as error:
        raise ConfigError(
            f"MASTER_PORT = {port}: cannot be listened at on {address}, {socket.gethostname()} ({error.strerror}); set "
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
            f"{limit.total_seconds():.0f} s; look whether it runs, and whether a firewall lets this host in: {error}"
        ) from error
