"""Training and scoring on two hosts by launcher/hostfile.sh: what comes out is what one host gives."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megaslm.config.schema import RunConfig
from tests.faults.figures import Figures
from tests.faults.runs import LONGER, STEPS, Material, records, steps_made, weights_sha256
from tests.forks import wait_until
from tests.messages import lines_with
from tests.multinode.hostfile_job import HostfileJob
from tests.multinode.hosts import Hosts
from tests.scoring import make_reference, rows_of
from tests.toy import write_config
from tests.training import losses

pytestmark = pytest.mark.usefixtures("pdsh")

MANY_STEPS = 4000


@pytest.mark.parametrize("remote_shell", ["pdsh", pytest.param("ssh", marks=pytest.mark.slow)])
def test_a_training_on_two_hosts_is_that_of_one_host_with_two_ranks(
    remote_shell: str, hosts: Hosts, material: Material, undisturbed_run: RunConfig, tmp_path: Path
) -> None:
    config = material.config(tmp_path / "run")
    run = write_config(tmp_path / "run.yaml", config)
    with HostfileJob(hosts, tmp_path, ["train", run], remote_shell=remote_shell) as job:
        assert job.wait(seconds=120) == 0, job.output
    assert losses(Path(config.run_dir)) == losses(Path(undisturbed_run.run_dir))
    assert weights_sha256(config) == weights_sha256(undisturbed_run)
    assert steps_made(job.output) == list(range(1, STEPS + 1))


@pytest.mark.parametrize("remote_shell", ["ssh", pytest.param("pdsh", marks=pytest.mark.slow)])
def test_a_scoring_on_two_hosts_is_that_of_one_process(
    remote_shell: str, hosts: Hosts, material: Material, tmp_path: Path
) -> None:
    """The material was scored by one process."""
    make_reference(tmp_path / "reference")
    arguments = [
        "score",
        "--reference",
        tmp_path / "reference",
        "--batch-rows",
        "4",
        material.tokens,
        tmp_path / "scored",
    ]
    with HostfileJob(hosts, tmp_path, arguments, remote_shell=remote_shell) as job:
        assert job.wait(seconds=120) == 0, job.output
    assert rows_of(tmp_path / "scored") == rows_of(material.scored)


@pytest.fixture
def ipv6_address(hosts: Hosts) -> Iterator[str]:
    """That of the first host; the second one has another in the same network."""
    addresses = {host: f"fd77::{number}" for number, host in enumerate(hosts.all, 1)}
    for host, address in addresses.items():
        host.run("ip", "address", "add", f"{address}/64", "dev", "eth0", "nodad")
    yield addresses[hosts.first]
    for host, address in addresses.items():
        host.run("ip", "address", "delete", f"{address}/64", "dev", "eth0")


@pytest.mark.slow
@pytest.mark.parametrize("remote_shell", ["pdsh", "ssh"])
def test_ranks_meet_at_an_ipv6_address(
    remote_shell: str,
    hosts: Hosts,
    ipv6_address: str,
    material: Material,
    undisturbed_run: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MASTER_ADDR", ipv6_address)
    config = material.config(tmp_path / "run")
    run = write_config(tmp_path / "run.yaml", config)
    with HostfileJob(hosts, tmp_path, ["train", run], remote_shell=remote_shell) as job:
        assert job.wait(seconds=120) == 0, job.output
    assert weights_sha256(config) == weights_sha256(undisturbed_run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("remote_shell", "told"),
    [("pdsh", signal.SIGTERM), ("pdsh", signal.SIGUSR1), ("ssh", signal.SIGTERM), ("ssh", signal.SIGINT)],
)
def test_a_job_that_is_told_to_stop_saves_and_resumes_later(
    remote_shell: str, told: signal.Signals, hosts: Hosts, material: Material, tmp_path: Path, figures: Figures
) -> None:
    config = material.config(tmp_path / "run", steps=MANY_STEPS)
    arguments = ["train", write_config(tmp_path / "run.yaml", config), "--resume", *LONGER]
    with HostfileJob(hosts, tmp_path / "told", arguments, remote_shell=remote_shell) as job:
        job.wait_until_it_says(" · step 3/")
        job.send(told)
        began = time.monotonic()
        assert job.wait(seconds=60) == 75, job.output
        seconds = time.monotonic() - began
    made = steps_made(job.output)
    assert lines_with(job.output, f"step {made[-1]} ", "--resume")
    assert made[-1] < MANY_STEPS
    last = material.config(tmp_path / "run", steps=made[-1] + 2)
    write_config(tmp_path / "run.yaml", last)
    with HostfileJob(hosts, tmp_path / "resumed", arguments, remote_shell=remote_shell) as job:
        assert job.wait(seconds=120) == 0, job.output
    made += steps_made(job.output)
    assert made == list(range(1, len(made) + 1)) == [record["step"] for record in records(last)]
    figures.record("nodes_told", **{f"{remote_shell}_{told.name.lower()}_seconds": seconds})


@pytest.mark.slow
@pytest.mark.parametrize("remote_shell", ["pdsh", "ssh"])
def test_a_job_that_is_told_to_stop_while_it_starts_may_be_started_again(
    remote_shell: str, hosts: Hosts, material: Material, tmp_path: Path
) -> None:
    config = material.config(tmp_path / "run", steps=MANY_STEPS)
    arguments = ["train", write_config(tmp_path / "run.yaml", config), "--resume"]
    for number, part in enumerate((" check ", "-m deepspeed.launcher.", "-u -m megaslm")):
        with HostfileJob(hosts, tmp_path / str(number), arguments, remote_shell=remote_shell) as job:
            wait_until(lambda part=part: any(part in command for command in hosts.processes().get("node-1", [])))
            job.send(signal.SIGTERM)
            assert job.wait(seconds=60) == 75, job.output
