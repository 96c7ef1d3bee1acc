"""The network between ranks, and the settings of gloo and NCCL where the environment has none.

torch's defaults stay: a failed collective ends its process (TORCH_NCCL_ASYNC_ERROR_HANDLING). `distributed` sets the
time limit of collectives.
"""

import ipaddress
import os
import socket

import psutil

from megaslm.errors import ConfigError

LOOPBACK = "127.0.0.1"

GLOO_INTERFACE, NCCL_INTERFACE = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
"""The environment variables that name the interfaces of collectives."""
# A port for route look-ups; nothing is sent to it.
_ANY_PORT = 9


def keep_to_interface_towards(host: str) -> str:
    """Makes collectives use the interface over which this host reaches `host`, which may be this host.

    By default gloo takes the address of the host's own name, often a loopback address, and NCCL the first interface
    that it finds, which may be a container bridge. Interfaces that the environment names are kept.

    Returns:
        The interface that gloo will use.

    Raises:
        ConfigError: there is no route to the host.
    """
    if not (GLOO_INTERFACE in os.environ and NCCL_INTERFACE in os.environ):
        interface = _interface_of(own_address_towards(host))
        os.environ.setdefault(GLOO_INTERFACE, interface)
        # Without the sign NCCL would take every interface whose name begins with this one.
        os.environ.setdefault(NCCL_INTERFACE, f"={interface}")
    # NCCL is silent by default. At this level it names the peer and the interface of an error.
    os.environ.setdefault("NCCL_DEBUG", "WARN")
    return os.environ[GLOO_INTERFACE]


def own_address_towards(host: str) -> str:
    """The address of this host as `host` sees it; its own address where `host` is this host.

    Raises:
        ConfigError: there is no route to the host.
    """
    family, place = _resolved(host)
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a datagram socket only looks up the route.
            probe.connect(place)
        except OSError as error:
            raise ConfigError(
                f"MASTER_ADDR = {host}: this host, {socket.gethostname()}, has no route there ({error.strerror}); the "
                "launcher sets it to an address of the first host that all hosts reach"
            ) from error
        return str(probe.getsockname()[0])


def address_of(host: str) -> str:
    """The address that a name resolves to on this host. Raises ConfigError where it does not resolve."""
    _, (address, *_) = _resolved(host)
    return str(address)


def is_loopback(host: str) -> bool:
    """Whether a name or an address is a loopback address. Raises ConfigError as `address_of` does."""
    return ipaddress.ip_address(address_of(host)).is_loopback


def loopback_interfaces() -> set[str]:
    """The names of the loopback interfaces."""
    return {
        name
        for name, addresses in addresses_by_interface().items()
        if any(ipaddress.ip_address(a).is_loopback for a in addresses)
    }


def _interface_of(address: str) -> str:
    for name, addresses in addresses_by_interface().items():
        if address in addresses:
            return name
    raise ConfigError(
        f"no interface of {socket.gethostname()} has its address {address}; set {GLOO_INTERFACE} and {NCCL_INTERFACE} "
        "to one"
    )


def addresses_by_interface() -> dict[str, list[str]]:
    """The IP addresses of each interface, without their zones."""
    families = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [each.address.partition("%")[0] for each in addresses if each.family in families]
        for name, addresses in psutil.net_if_addrs().items()
    }


def _resolved(host: str) -> tuple[socket.AddressFamily, tuple[object, ...]]:
    """The family of an address, and the tuple for a socket's connect, which begins with the address."""
    try:
        family, *_, place = socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(
            f"MASTER_ADDR = {host}: is no address that this host, {socket.gethostname()}, can resolve ({error}); the "
            "launcher sets it to that of the first host"
        ) from error
    return family, place
