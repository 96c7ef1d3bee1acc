"""A host on this machine: a network, processes, a name, shared memory and an sshd of its own; files it shares."""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from tests.faults.host import is_alive
from tests.forks import wait_until

_SSHD = "/usr/sbin/sshd"
_OF_THE_HOST_ITSELF = ("sshd", _SSHD, "sleep infinity")
_NEEDED = ("ip", "nsenter", "setpriv", "ssh", "ssh-keygen", "unshare", _SSHD)

# The first process of a host. Whatever loses its parent there becomes its child, and bash buries it.
_FIRST_PROCESS = """
set -eu
cd "$1"
hostname "$2"
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mount --bind hosts /etc/hosts
mount --bind ssh /etc/ssh
if [ -d ~/.ssh ]; then mount --bind empty ~/.ssh; fi
touch "$2.ready"
sleep infinity &
while :; do wait; done
"""


def why_there_are_none() -> str | None:
    """What is missing on this machine for hosts of this kind; None where nothing is."""
    if os.geteuid() != 0:
        return "hosts as network namespaces need root"
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        return f"hosts need {', '.join(missing)}: apt-get install openssh-server openssh-client iproute2 util-linux"
    # In a namespace of its own, which leaves nothing behind.
    trial = "ip link add trial type veth peer name other && ip netns add trial && ip netns exec trial true"
    apart = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--mount-proc"]
    tried = subprocess.run([*apart, "sh", "-c", f"mount -t tmpfs none /run && {trial}"], capture_output=True)
    return None if tried.returncode == 0 else f"this machine allows no such namespaces: {tried.stderr.decode().strip()}"


class Host:
    """One of the two."""

    def __init__(self, name: str, address: str, network: str, folder: Path) -> None:
        """`folder` holds what is laid over the machine's own files."""
        self.name = name
        self.address = address
        self._network = network
        self._folder = folder
        self._outside: subprocess.Popen[bytes] | None = None

    @property
    def is_up(self) -> bool:
        """Whether it runs."""
        return self._outside is not None and self._outside.poll() is None

    def boot(self) -> None:
        """Starts it and its sshd."""
        ready = self._folder / f"{self.name}.ready"
        ready.unlink(missing_ok=True)
        # Where the test run is killed, its hosts are too.
        entered = ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self._network, "unshare", "--kill-child"]
        entered += ["--mount", "--pid", "--uts", "--fork", "--mount-proc"]
        self._outside = subprocess.Popen([*entered, "bash", "-c", _FIRST_PROCESS, "bash", self._folder, self.name])
        wait_until(lambda: ready.exists() or not self.is_up)
        assert self.is_up, f"{self.name} did not come up"
        self.start_sshd()

    def lose(self) -> None:
        """Ends it with all its processes at once."""
        if self._outside is not None:
            self._outside.kill()
            self._outside.wait()

    def start(
        self,
        *arguments: str | Path,
        cwd: Path = Path("/"),
        environment: Mapping[str, str] | None = None,
        output: IO[bytes] | int = subprocess.DEVNULL,
    ) -> "subprocess.Popen[bytes]":
        """Starts a program on it; both of its outputs go to `output`. `send` signals it."""
        command = ["nsenter", "--target", str(self._first_process), "--mount", "--uts", "--net", "--pid"]
        command += [f"--wd={cwd}", "--", *map(str, arguments)]
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )

    def run(
        self,
        *arguments: str | Path,
        cwd: Path = Path("/"),
        environment: Mapping[str, str] | None = None,
        expect_status: int = 0,
        timeout_seconds: float = 60,
    ) -> str:
        """Runs a program on it to its end, and gives what it printed."""
        with self.start(*arguments, cwd=cwd, environment=environment, output=subprocess.PIPE) as process:
            output = process.communicate(timeout=timeout_seconds)[0].decode()
        assert process.returncode == expect_status, f"status {process.returncode} on {self.name}:\n{output}"
        return output

    def send(self, process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
        """Signals a program that `start` has started."""
        for child in _children(process.pid):
            os.kill(child, number)

    def processes(self) -> dict[int, str]:
        """What runs on it beside its sshd: process numbers of this machine, and their command lines."""
        if not self.is_up:
            return {}
        first = self._first_process
        here = _process_namespace(first)
        found = [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]  # noqa: PTH208
        there = [pid for pid in found if pid != first and _process_namespace(pid) == here and is_alive(pid)]
        commands = {pid: _command(pid) for pid in there}
        return {pid: command for pid, command in commands.items() if not command.startswith(_OF_THE_HOST_ITSELF)}

    def listens_at(self, port: int) -> bool:
        """Whether any of its processes listens there."""
        lines = Path(f"/proc/{self._first_process}/net/tcp").read_text().splitlines()[1:]
        return any(columns[1].endswith(f":{port:04X}") and columns[3] == "0A" for columns in map(str.split, lines))

    def start_sshd(self) -> None:
        """From now on it lets the other one in."""
        self.run(_SSHD)

    def stop_sshd(self) -> None:
        """From now on it refuses connections to its sshd, and breaks off those there are."""
        self.run("bash", "-c", "pkill -x sshd; while pgrep -x sshd; do sleep 0.02; done >/dev/null")

    @property
    def has_sshd(self) -> bool:
        """Whether it lets the other one in."""
        return self.run("bash", "-c", f"pgrep -f '^sshd: {_SSHD}' || echo").strip() != ""

    @property
    def _first_process(self) -> int:
        assert self._outside is not None
        assert self.is_up, f"{self.name} is down"
        (first,) = _children(self._outside.pid)
        return first


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _process_namespace(process: int) -> str:
    try:
        return str(Path(f"/proc/{process}/ns/pid").readlink())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
