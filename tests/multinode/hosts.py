"""Two hosts on this machine, with a link between them that can be cut."""

import itertools
import os
import re
import signal
import subprocess
import textwrap
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.faults.host import is_alive
from tests.multinode.host import Host

_NETWORK = re.compile(r"megaslm-(\d+)-\d+")
_numbers = itertools.count(1)
_INTERFACE = "eth0"
_ADDRESSES = "10.77.0"


class Hosts:
    """Two hosts, `node-1` and `node-2`, that reach each other by name, and each the other's sshd without a password."""

    def __init__(self, folder: Path) -> None:
        """`folder` is for their keys and settings."""
        networks = [f"megaslm-{os.getpid()}-{next(_numbers)}" for _ in range(2)]
        self._networks = networks
        self.first, self.second = self.all = tuple(
            Host(f"node-{number}", f"{_ADDRESSES}.{number}", network, folder)
            for number, network in enumerate(networks, 1)
        )
        self._folder = folder

    def __enter__(self) -> Self:
        _remove_leftovers()
        _write_settings(self._folder, self.all)
        try:
            for network in self._networks:
                _ip("netns", "add", network)
            self.add_link(_INTERFACE, _ADDRESSES)
            for network, host in zip(self._networks, self.all, strict=True):
                _ip("-n", network, "link", "set", "lo", "up")
                host.boot()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for host in self.all:
            host.lose()
        for network in self._networks:
            subprocess.run(["ip", "netns", "delete", network], check=False)

    def add_link(self, interface: str, addresses: str) -> None:
        """One more cable between them, with the addresses `addresses`.1 and .2."""
        one, other = self._networks
        _ip("link", "add", interface, "netns", one, "type", "veth", "peer", "name", interface, "netns", other)
        for number, network in enumerate(self._networks, 1):
            _ip("-n", network, "address", "add", f"{addresses}.{number}/24", "dev", interface)
            _ip("-n", network, "link", "set", interface, "up")

    def cut_link(self) -> None:
        """From now on nothing gets from one to the other."""
        _ip("-n", self._networks[1], "link", "set", _INTERFACE, "down")

    def join_link(self) -> None:
        """From now on it does again."""
        _ip("-n", self._networks[1], "link", "set", _INTERFACE, "up")

    def mend(self) -> None:
        """Makes good what a test has done to them, and ends what it has left running."""
        self.join_link()
        for host in self.all:
            if not host.is_up:
                host.boot()
            elif not host.has_sshd:
                host.start_sshd()
            for process in host.processes():
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

    def processes(self) -> dict[str, list[str]]:
        """The command lines of what runs on each, of those on which anything does."""
        return {host.name: list(found.values()) for host in self.all if (found := host.processes())}


def _write_settings(folder: Path, hosts: tuple[Host, ...]) -> None:
    (folder / "empty").mkdir(parents=True)
    ssh = folder / "ssh"
    ssh.mkdir()
    # One key is the identity of both hosts and that by which each lets the other in.
    key = ssh / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", key], check=True)
    public = (ssh / "key.pub").read_text()
    names = ",".join(name for host in hosts for name in (host.name, host.address))
    (ssh / "ssh_known_hosts").write_text(f"{names} {public}")
    (ssh / "authorized_keys").write_text(public)
    (ssh / "ssh_config").write_text(
        "IdentityFile /etc/ssh/key\nUserKnownHostsFile /dev/null\nPasswordAuthentication no\n"
    )
    (ssh / "sshd_config").write_text(
        textwrap.dedent("""\
            HostKey /etc/ssh/key
            AuthorizedKeysFile /etc/ssh/authorized_keys
            PermitRootLogin prohibit-password
            PasswordAuthentication no
            UsePAM no
            PrintMotd no
            """)
    )
    lines = ["127.0.0.1 localhost", *(f"{host.address} {host.name}" for host in hosts)]
    (folder / "hosts").write_text("\n".join(lines) + "\n")


def _remove_leftovers() -> None:
    """Networks of test runs that are over; their processes are too."""
    for found in _NETWORK.finditer(_ip("netns", "list")):
        if not is_alive(int(found[1])):
            subprocess.run(["ip", "netns", "delete", found[0]], check=False)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout
