"""`megaslm launch` on two hosts and on a Slurm of two nodes: from a cluster's file to the trained model."""

import os
import sys
from pathlib import Path

import pytest

from megaslm.config.schema import RunConfig
from megaslm.config.source import to_yaml
from tests.faults.runs import Material, steps_made
from tests.launched import ROOT
from tests.multinode.hostfile_job import ONE_RANK_EACH, free_port
from tests.multinode.hosts import Hosts
from tests.multinode.slurm_cluster import SlurmCluster, why_there_is_none
from tests.toy import write_config

STEPS = 2
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
LAUNCH = (sys.executable, "-m", "megaslm", "launch")

pytestmark = pytest.mark.slow


@pytest.fixture
def run(material: Material, tmp_path: Path) -> Path:
    """A short training, as a file."""
    config: RunConfig = material.config(tmp_path / "run", steps=STEPS)
    return write_config(tmp_path / "run.yaml", config)


def test_on_the_hosts_of_a_hostfile(hosts: Hosts, run: Path, tmp_path: Path) -> None:
    (tmp_path / "my hosts.txt").write_text("\n".join(ONE_RANK_EACH) + "\n")
    settings = {
        "kind": "hostfile",
        "hostfile": "my hosts.txt",
        "remote_shell": "ssh",
        "master_addr": "10.77.0.1",
        "master_port": free_port(),
        "environment": ENVIRONMENT,
    }
    (tmp_path / "cluster.yaml").write_text(to_yaml(settings))
    words = (*LAUNCH, "--cluster", "cluster.yaml", run)
    said = hosts.first.run(*words, cwd=tmp_path, environment=os.environ, timeout_seconds=120)
    assert steps_made(said) == list(range(1, STEPS + 1))
    assert hosts.processes() == {}


def test_on_the_nodes_of_slurm(hosts: Hosts, run: Path, tmp_path: Path) -> None:
    if reason := why_there_is_none():
        pytest.skip(reason)
    output = tmp_path / "output.txt"
    settings = {
        "kind": "slurm",
        "nodes": 2,
        "ranks_per_node": 1,
        "time": "10:00",
        "options": {"output": str(output)},
        "environment": ENVIRONMENT,
    }
    (tmp_path / "cluster.yaml").write_text(to_yaml(settings))
    with SlurmCluster(hosts) as cluster:
        said = cluster.run(*LAUNCH, "--cluster", tmp_path / "cluster.yaml", run, "--resume", cwd=ROOT)
        job = str(int(said))
        cluster.wait_until(
            lambda: "JobState=COMPLETED" in cluster.run("scontrol", "show", "job", job),
            seconds=120,
        )
    assert steps_made(output.read_text()) == list(range(1, STEPS + 1))
