"""The seconds from `megaslm launch` to the first step, and where they go."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest

from megaslm.config.source import to_yaml
from tests.faults.figures import Figures
from tests.faults.runs import Material
from tests.forks import wait_until
from tests.multinode.hostfile_job import ONE_RANK_EACH, free_port
from tests.multinode.hosts import Hosts
from tests.toy import write_config

STARTS = 3


@pytest.mark.slow
@pytest.mark.usefixtures("pdsh")
@pytest.mark.parametrize("remote_shell", ["pdsh", "ssh"])
def test_where_the_time_to_the_first_step_goes(
    remote_shell: str, hosts: Hosts, material: Material, tmp_path: Path, figures: Figures
) -> None:
    starts = [start(hosts, material, tmp_path / str(number), remote_shell) for number in range(STARTS)]
    medians = {name: median(reached[name] for reached in starts) for name in starts[0]}
    figures.record("start", **{f"{remote_shell}_{name}_seconds": seconds for name, seconds in medians.items()})


def start(hosts: Hosts, material: Material, folder: Path, remote_shell: str) -> dict[str, float]:
    """Trains once, and gives the seconds until each thing on the way to the first step was there."""
    folder.mkdir()
    port = free_port()
    (folder / "hosts.txt").write_text("\n".join(ONE_RANK_EACH) + "\n")
    settings = {
        "kind": "hostfile",
        "hostfile": "hosts.txt",
        "remote_shell": remote_shell,
        "master_port": port,
        "environment": {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
    }
    (folder / "cluster.yaml").write_text(to_yaml(settings))
    run = write_config(folder / "run.yaml", material.config(folder / "run"))
    words = (sys.executable, "-m", "megaslm", "launch", "--cluster", "cluster.yaml", run)
    log = folder / "output.txt"
    conditions: dict[str, Callable[[], bool]] = {
        "configured": lambda: any("launcher/hostfile.sh" in command for command in commands(hosts, "node-1")),
        "hosts_asked": lambda: python_runs(commands(hosts, "node-1"), "-m deepspeed.launcher."),
        "launcher": lambda: on_both(hosts, "-m deepspeed.launcher.launch"),
        "ranks": lambda: on_both(hosts, "-u -m megaslm"),
        "imports": lambda: hosts.first.listens_at(port),
        "joined": lambda: "preflight: " in log.read_text(),
        "first_step": lambda: " · step 1/" in log.read_text(),
    }
    began = time.monotonic()
    with log.open("ab") as output:
        job = hosts.first.start(*words, cwd=folder, environment=os.environ, output=output)
    reached = {}
    for name, condition in conditions.items():
        wait_until(lambda condition=condition: condition() or job.poll() is not None)
        assert job.poll() is None, f"ended before {name}:\n{log.read_text()}"
        reached[name] = time.monotonic() - began
    assert job.wait(timeout=120) == 0, log.read_text()
    return reached


def commands(hosts: Hosts, host: str) -> list[str]:
    return hosts.processes().get(host, [])


def on_both(hosts: Hosts, part: str) -> bool:
    return all(python_runs(commands(hosts, host.name), part) for host in hosts.all)


def python_runs(running: list[str], part: str) -> bool:
    """Whether Python runs it; the shells on the way there have it in their command lines too."""
    return any(part in command and command.split()[0].endswith("python") for command in running)
