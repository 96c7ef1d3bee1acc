"""Where the ranks meet. What is for one host alone listens on its loopback interface alone.

torch's store listens on every interface, and who can write into it can make ranks unpickle what he likes.
"""

import ipaddress
import os
import socket
from datetime import timedelta

from torch.distributed import HashStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from megaslm.errors import ConfigError

LOOPBACK = "127.0.0.1"

_LOOPBACK_INTERFACES = ("lo", "lo0")
_MOST_WAITING_CONNECTIONS = 2048


def meeting_store(rank: int, world_size: int, timeout: timedelta) -> Store | None:
    """The store by which the ranks of one host, or one rank alone, find one another.

    Also keeps the connections of their collectives on the loopback interface, unless the environment names another.
    None where the ranks meet at an address that other hosts reach: torch then does what the environment says.

    Raises:
        ConfigError: MASTER_ADDR or MASTER_PORT cannot be used, or torchrun would mix up its attempts.
    """
    is_for_one_host = _is_for_one_host(world_size)
    if is_for_one_host:
        _keep_connections_on_loopback()
    if world_size > 1 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return _store_of_torchrun(world_size, timeout)
    if not is_for_one_host:
        return None
    if world_size == 1:
        return HashStore()
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if rank == 0:
        return _served_on_loopback(host, port, world_size=world_size, timeout=timeout)
    return TCPStore(host, port, world_size, is_master=False, timeout=timeout)


def _keep_connections_on_loopback() -> None:
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, _loopback_interface())


def _store_of_torchrun(world_size: int, timeout: timedelta) -> Store | None:
    """The store that torchrun lets the ranks share, which still holds the addresses of the ranks of earlier attempts.

    https://github.com/pytorch/pytorch/issues/135712
    """
    if _ranks_of_this_host() == world_size:
        shared = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world_size, is_master=False, timeout=timeout
        )
        return PrefixStore(f"attempt-{os.environ['TORCHELASTIC_RESTART_COUNT']}", shared)
    # Each host counts the attempts that its own ranks have failed in.
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise ConfigError(
            f"torchrun --max-restarts {os.environ['TORCHELASTIC_MAX_RESTARTS']}: on several hosts the ranks of a new "
            "attempt would meet those of the one before in torchrun's store; start torchrun with "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment, or without --max-restarts"
        )
    return None


def serve_store(world_size: int) -> tuple[Store, int]:
    """A store beside the one of the meeting, served by this rank, and the port at which the others reach it.

    Nobody is waited for. For one rank alone there is no port, and its number is 0.
    """
    if world_size == 1:
        return HashStore(), 0
    host = os.environ["MASTER_ADDR"]
    if _is_for_one_host(world_size):
        store = _served_on_loopback(host, 0)
    else:
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
    return store, store.port


def _is_for_one_host(world_size: int) -> bool:
    """Whether every rank is on this host and the address to meet at is its own."""
    if world_size == 1:
        return True
    if _ranks_of_this_host() != world_size:
        return False
    return ipaddress.ip_address(_address_of(os.environ["MASTER_ADDR"])).is_loopback


def _ranks_of_this_host() -> int | None:
    # torchrun and DeepSpeed's launcher call it by different names.
    count = os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE"))
    return None if count is None else int(count)


def _address_of(host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ConfigError(
            f"MASTER_ADDR = {host}: is no address that this host can resolve ({error}); the launcher sets it to that "
            "of the first host"
        ) from error


def _served_on_loopback(
    host: str, port: int, *, world_size: int | None = None, timeout: timedelta = timedelta(minutes=5)
) -> TCPStore:
    """A store at a port, or at any where it is 0; with `world_size`, once so many ranks have come."""
    address = _address_of(host)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listener = socket.create_server((address, port), family=family, backlog=_MOST_WAITING_CONNECTIONS)
    except OSError as error:
        raise ConfigError(
            f"MASTER_PORT = {port}: cannot be listened at on {address} ({error.strerror}); set another"
        ) from error
    port = listener.getsockname()[1]
    return TCPStore(
        address,
        port,
        world_size,
        is_master=True,
        timeout=timeout,
        wait_for_workers=world_size is not None,
        master_listen_fd=listener.detach(),
    )


def _loopback_interface() -> str:
    return next(name for _, name in socket.if_nameindex() if name in _LOOPBACK_INTERFACES)
