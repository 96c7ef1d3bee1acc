"""A Slurm cluster on the two hosts of this machine, with daemons, a key and a folder of its own."""

import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from tests.multinode.host import Host
from tests.multinode.hosts import Hosts

_NEEDED = ("munged", "sbatch", "slurmctld", "slurmd")
_SETTINGS = Path(__file__).with_name("slurm.conf")
# What a newer Slurm calls otherwise. Tried with 22.05 only: the newer words have only been read about.
_RENAMED_IN = (23, 2)
_TELL_PREEMPTED_JOBS = ("SlurmctldParameters=preempt_send_user_signal", "PreemptParameters=send_user_signal")
_NO_CONTROL_GROUPS = ("CgroupPlugin=cgroup/v1", "CgroupPlugin=disabled")
_KEY_BYTES = 128
_LOOK_SECONDS = 0.1


def why_there_is_none() -> str | None:
    """What is missing on this machine for a cluster; None where nothing is."""
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    return f"a cluster needs {', '.join(missing)}: apt-get install slurm-wlm munge" if missing else None


class SlurmCluster:
    """The controller on the first host and a node on each; ended with the context, and its jobs with it."""

    def __init__(self, hosts: Hosts) -> None:
        """On hosts that are up."""
        self._hosts = hosts

    def __enter__(self) -> Self:
        # Daemons make sockets in it, whose paths may not be long.
        self._temporary = TemporaryDirectory(prefix="slurm-")
        self._folder = Path(self._temporary.name)
        self._write_settings()
        self._start_munge()
        self._start(self._hosts.first, "slurmctld", "-D", "-f", self._settings)
        for host in self._hosts.all:
            self.start_node(host)
        self.wait_until(lambda: self._states_of_nodes() == "idle\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hosts.mend()
        self._temporary.cleanup()

    def start_node(self, host: Host) -> None:
        """Lets a host take jobs, when the cluster begins or the host was booted again."""
        self._start(host, "slurmd", "-D", "-f", self._settings)

    def run(self, *command: str | Path, cwd: Path = Path("/"), environment: Mapping[str, str] | None = None) -> str:
        """Runs a command of Slurm's on the first host, and gives what it printed."""
        variables = {**os.environ, "SLURM_CONF": str(self._settings), **(environment or {})}
        return self._hosts.first.run(*command, cwd=cwd, environment=variables)

    def submit(self, *arguments: str | Path, cwd: Path, environment: Mapping[str, str] | None = None) -> int:
        """Submits a job, by `sbatch ARGUMENT ...`, and gives its number."""
        return int(self.run("sbatch", "--parsable", *arguments, cwd=cwd, environment=environment))

    def wait_until(self, condition: Callable[[], bool], *, seconds: float = 30) -> None:
        """Waits, and shows what the daemons have said where that takes too long."""
        give_up = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < give_up, f"nothing happens any more:\n{self._said()}"
            time.sleep(_LOOK_SECONDS)

    @property
    def _settings(self) -> Path:
        return self._folder / "slurm.conf"

    def _write_settings(self) -> None:
        is_newer = self._version() >= _RENAMED_IN
        text = _SETTINGS.read_text().format(
            folder=self._folder,
            nodes=",".join(host.name for host in self._hosts.all),
            first=self._hosts.first.name,
            preempted_get_their_signal=_TELL_PREEMPTED_JOBS[is_newer],
        )
        self._settings.write_text(text)
        # slurmd looks for control groups, though nothing here uses them, and these hosts have none.
        (self._folder / "cgroup.conf").write_text(_NO_CONTROL_GROUPS[is_newer] + "\n")
        (self._folder / "state").mkdir()

    def _version(self) -> tuple[int, int]:
        """Of the Slurm on this machine: year and month."""
        said = self._hosts.first.run("slurmctld", "-V")
        found = re.search(r"(\d+)\.(\d+)", said)
        assert found, f"slurmctld -V says {said!r}; expected a version such as 22.05"
        return int(found[1]), int(found[2])

    def _start_munge(self) -> None:
        """The daemon by which Slurm's know one another; one does for both hosts, as they share this folder."""
        socket, key = self._folder / "munge.socket", self._folder / "munge.key"
        key.write_bytes(os.urandom(_KEY_BYTES))
        key.chmod(0o400)
        files = [f"--{kind}-file={self._folder / f'munge.{kind}'}" for kind in ("key", "log", "pid", "seed")]
        self._start(self._hosts.first, "munged", "--foreground", "--force", f"--socket={socket}", *files)
        self.wait_until(socket.exists)

    def _start(self, host: Host, *command: str | Path) -> None:
        with (self._folder / f"{host.name}-{command[0]}.out").open("ab") as log:
            host.start(*command, environment=os.environ, output=log)

    def _states_of_nodes(self) -> str:
        """Each once; nothing until the controller answers."""
        return self.run("bash", "-c", "sinfo --noheader --format=%T --partition=usual || true")

    def _said(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(self._folder.glob("*.out")))
