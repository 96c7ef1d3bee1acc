"""A real training by launcher/torchrun.sh: told to stop, killed and started again, on one host and on two."""

import os
import signal
import subprocess
import uuid
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest

from megaslm.config.schema import RunConfig
from tests.faults.host import MARK, processes_of, wait_until_gone
from tests.faults.injected import injected_in
from tests.faults.runs import STEPS, Material, steps_made, weights_sha256
from tests.injection.faults import injecting
from tests.launched import ROOT
from tests.multinode.hosts import Hosts
from tests.toy import write_config

SCRIPT = ROOT / "launcher" / "torchrun.sh"
ONE_HOST = {"RANKS_PER_NODE": "2"}
TWO_HOSTS = {"NODES": "2", "RANKS_PER_NODE": "1", "RENDEZVOUS": "10.77.0.1:29400"}
_SECONDS = 240

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * _SECONDS)]


def statuses(words: list[str], environment: dict[str, str], output: Path, hosts: Hosts | None) -> list[int]:
    """Runs the script on this host, or on both of two, and gives the status on each. Nothing is left running."""
    mark = uuid.uuid4().hex
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", MARK: mark, **environment}
    with output.open("ab") as log:
        jobs = list(_started(words, environment, log, hosts))
        try:
            found = [job.wait(timeout=_SECONDS) for job in jobs]
            wait_until_gone(lambda: processes_of(mark))
        finally:
            for process in processes_of(mark):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
    return found


def _started(
    words: list[str], environment: dict[str, str], log: IO[bytes], hosts: Hosts | None
) -> "list[subprocess.Popen[bytes]]":
    if hosts is None:
        return [subprocess.Popen(words, env=environment, stdout=log, stderr=log)]
    return [host.start(*words, environment=environment, output=log) for host in hosts.all]


def check(
    config: RunConfig, undisturbed: RunConfig, folder: Path, settings: dict[str, str], hosts: Hosts | None
) -> None:
    """The training is told to stop, continues, loses a rank, and comes to the weights of the undisturbed one."""
    words = [str(SCRIPT), "train", str(write_config(folder / "run.yaml", config)), "--resume"]
    output = folder / "output.txt"

    def run(fault: str) -> set[int]:
        settings_and_fault = {"MAX_RESTARTS": "3", **settings, **injecting(fault)}
        return set(statuses(words, settings_and_fault, output, hosts))

    assert run("usr1@rank1:step3") == {75}, output.read_text()
    assert steps_made(output.read_text()) in ([1, 2, 3], [1, 2, 3, 4])
    assert run("kill@rank1:step7") == {0}, output.read_text()
    said = output.read_text()
    assert len(injected_in(said)) == 2
    made = steps_made(said)
    assert len(made) > STEPS, said
    assert made[-1] == STEPS
    assert weights_sha256(config) == weights_sha256(undisturbed)


def test_on_one_host(material: Material, undisturbed_run: RunConfig, tmp_path: Path) -> None:
    check(material.config(tmp_path / "run"), undisturbed_run, tmp_path, ONE_HOST, None)


def test_on_two_hosts(hosts: Hosts, material: Material, undisturbed_run: RunConfig, tmp_path: Path) -> None:
    check(material.config(tmp_path / "run"), undisturbed_run, tmp_path, TWO_HOSTS, hosts)
    assert hosts.processes() == {}
