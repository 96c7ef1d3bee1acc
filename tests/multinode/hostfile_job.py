"""Jobs that launcher/hostfile.sh starts on two hosts, watched from outside."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from psutil import Process

from tests.forks import wait_until
from tests.launched import ROOT
from tests.multinode.hosts import Hosts

HOSTFILE = ROOT / "launcher" / "hostfile.sh"
ONE_RANK_EACH = ("node-1 slots=1", "node-2 slots=1")


class HostfileJob:
    """`launcher/hostfile.sh HOSTFILE ARGUMENT ...`, started on the first host."""

    def __init__(
        self,
        hosts: Hosts,
        folder: Path,
        arguments: Sequence[str | Path],
        *,
        remote_shell: str = "pdsh",
        hostfile: Sequence[str] = ONE_RANK_EACH,
        exported: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> None:
        """`folder` is where it runs, and where its hostfile and output go; `exported` are variables for the ranks."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts.txt").write_text("\n".join(hostfile) + "\n")
        self._hosts = hosts
        self._log = folder / "output.txt"
        # What DeepSpeed would say about a host without a GPU, and threads that contend, are no part of a test.
        exported = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **(exported or {})}
        environment = {
            **os.environ,
            **exported,
            "EXPORT": ",".join(exported),
            "REMOTE_SHELL": remote_shell,
            "MASTER_PORT": str(port or free_port()),
        }
        self.began = time.time()
        with self._log.open("ab") as log:
            # As a shell or a scheduler does it, in a process group of its own.
            self._script = hosts.first.start(
                "setsid", HOSTFILE, "hosts.txt", *arguments, cwd=folder, environment=environment, output=log
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.send(signal.SIGKILL)
        self._script.wait()

    @property
    def output(self) -> str:
        """All that it has said so far."""
        return self._log.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        """Whether the script is still there."""
        return self._script.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Signals the script, as a scheduler does."""
        if self.is_running:
            self._hosts.first.send(self._script, number)

    def send_to_group(self, number: signal.Signals) -> None:
        """Signals its whole process group, as Ctrl-C, a terminal that is closed and some schedulers do."""
        (script,) = Process(self._script.pid).children()
        os.killpg(script.pid, number)

    def wait(self, *, seconds: float) -> int:
        """Waits for the script to end, and gives its exit status; nothing is left running on any host then."""
        status = self.wait_for_status(seconds=seconds)
        assert self._hosts.processes() == {}, self.output
        return status

    def wait_for_status(self, *, seconds: float) -> int:
        """As `wait`, where other things run on the hosts."""
        try:
            return self._script.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.output}") from None

    def wait_until_it_says(self, text: str) -> None:
        """Waits, for a minute at most."""
        wait_until(lambda: text in self.output or not self.is_running)
        assert text in self.output, self.output


def free_port() -> int:
    """A port at which nobody listens on this machine, nor, as their networks are young, on the hosts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
