"""The network that ranks talk over, and what gloo and NCCL are told about it where the environment does not say.

What torch does by itself stays: a collective that fails ends its process (TORCH_NCCL_ASYNC_ERROR_HANDLING). How long
one may take `distributed` says.
"""

import ipaddress
import os
import socket

import psutil

from megaslm.errors import ConfigError

LOOPBACK = "127.0.0.1"

_GLOO, _NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
# Nothing is sent there.
_ANY_PORT = 9


def keep_to_interface_towards(host: str) -> str:
    """Lets the connections of collectives use the interface over which this host reaches another one, or itself.

    Left to themselves, gloo takes the address of the host's own name, which on many hosts is a loopback address, and
    NCCL the first interface that it finds, which may be a container bridge. Where the environment names one it stays.

    Returns:
        The interface that gloo will use.

    Raises:
        ConfigError: there is no way to the host.
    """
    if not (_GLOO in os.environ and _NCCL in os.environ):
        interface = _interface_of(own_address_towards(host))
        os.environ.setdefault(_GLOO, interface)
        # Without the sign NCCL would take every interface whose name begins so.
        os.environ.setdefault(_NCCL, f"={interface}")
    # NCCL is silent by default. At this level it says which peer and which interface an error was about.
    os.environ.setdefault("NCCL_DEBUG", "WARN")
    return os.environ[_GLOO]


def own_address_towards(host: str) -> str:
    """The address of this host that another one sees, or the host's own where it is itself.

    Raises:
        ConfigError: there is no way to the host.
    """
    family, place = _resolved(host)
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            # A datagram socket only looks up the route.
            probe.connect(place)
        except OSError as error:
            raise ConfigError(
                f"MASTER_ADDR = {host}: this host, {socket.gethostname()}, has no way there ({error.strerror}); the "
                "launcher sets it to an address of the first host that all hosts reach"
            ) from error
        return str(probe.getsockname()[0])


def address_of(host: str) -> str:
    """The address that a name stands for on this host. Raises ConfigError where it stands for none."""
    _, (address, *_) = _resolved(host)
    return str(address)


def is_loopback(host: str) -> bool:
    """Whether a name or an address stands for this host alone. Raises ConfigError as `address_of` does."""
    return ipaddress.ip_address(address_of(host)).is_loopback


def loopback_interfaces() -> set[str]:
    """The names of the interfaces by which this host reaches itself alone."""
    return {
        name for name, addresses in _addresses().items() if any(ipaddress.ip_address(a).is_loopback for a in addresses)
    }


def _interface_of(address: str) -> str:
    for name, addresses in _addresses().items():
        if address in addresses:
            return name
    raise ConfigError(
        f"no interface of {socket.gethostname()} has its address {address}; set {_GLOO} and {_NCCL} to one"
    )


def _addresses() -> dict[str, list[str]]:
    """The internet addresses of each interface, without their zones."""
    families = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [each.address.partition("%")[0] for each in addresses if each.family in families]
        for name, addresses in psutil.net_if_addrs().items()
    }


def _resolved(host: str) -> tuple[socket.AddressFamily, tuple[object, ...]]:
    """The family of an address, and what a socket of that family connects to: the address first."""
    try:
        family, *_, place = socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(
            f"MASTER_ADDR = {host}: is no address that this host, {socket.gethostname()}, can resolve ({error}); the "
            "launcher sets it to that of the first host"
        ) from error
    return family, place
