"""The seconds from the start of launcher/hostfile.sh to the first step, and where they go."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.figures import Figures
from tests.faults.runs import Material
from tests.forks import wait_until
from tests.integration.conftest import write_config
from tests.multinode.hostfile_job import HostfileJob, free_port
from tests.multinode.hosts import Hosts


@pytest.mark.slow
@pytest.mark.usefixtures("pdsh")
@pytest.mark.parametrize("remote_shell", ["pdsh", "ssh"])
def test_where_the_time_to_the_first_step_goes(
    remote_shell: str, hosts: Hosts, material: Material, tmp_path: Path, figures: Figures
) -> None:
    run = write_config(tmp_path / "run.yaml", material.config(tmp_path / "run"))
    port = free_port()
    with HostfileJob(hosts, tmp_path, ["train", run], remote_shell=remote_shell, port=port) as job:
        reached = {
            name: _seconds_until(condition, since=job.began)
            for name, condition in {
                "hosts_asked": lambda: _runs(hosts.processes().get("node-1", []), "deepspeed.launcher.runner"),
                "launcher": lambda: _on_both(hosts, "-m deepspeed.launcher.launch"),
                "ranks": lambda: _on_both(hosts, "-u -m megaslm"),
                "imports": lambda: hosts.first.listens_at(port),
                "joined": lambda: "preflight: " in job.output,
                "first_step": lambda: " · step 1/" in job.output,
            }.items()
        }
        assert job.wait(seconds=120) == 0, job.output
    figures.record("start", **{f"{remote_shell}_{name}_seconds": seconds for name, seconds in reached.items()})


def _seconds_until(condition: Callable[[], bool], *, since: float) -> float:
    wait_until(condition)
    return time.time() - since


def _on_both(hosts: Hosts, part: str) -> bool:
    commands = hosts.processes()
    return all(_runs(commands.get(host.name, []), part) for host in hosts.all)


def _runs(commands: list[str], part: str) -> bool:
    """Whether Python runs it; the shells on the way there have it in their command lines too."""
    return any(part in command and command.split()[0].endswith("python") for command in commands)
