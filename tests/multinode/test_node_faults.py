"""What happens to nodes: each job ends within its limit, names the node, and leaves nothing on any."""

import shutil
import signal
import time
from pathlib import Path

import pytest

from megaslm.config.schema import RunConfig
from tests.faults.figures import Figures
from tests.faults.runs import STEPS, STEPS_BETWEEN_CHECKPOINTS, Material, records, steps_made, weights_sha256
from tests.forks import wait_until
from tests.launched import ROOT
from tests.messages import lines_with
from tests.multinode.hostfile_job import ONE_RANK_EACH, HostfileJob, free_port
from tests.multinode.hosts import Hosts
from tests.toy import write_config
from tests.training import losses

pytestmark = [pytest.mark.usefixtures("pdsh"), pytest.mark.timeout(400)]

SILENCE_SECONDS = 20
SSH_LIMIT_SECONDS = 60
"""After which ssh gives a host up that does not answer."""
MANY_STEPS = 4000


def start_training(
    hosts: Hosts, config: RunConfig, folder: Path, hostfile: tuple[str, ...] = ONE_RANK_EACH
) -> HostfileJob:
    folder.mkdir()
    run = write_config(folder / "run.yaml", config)
    return HostfileJob(hosts, folder, ["train", run, "--resume"], hostfile=hostfile)


@pytest.mark.parametrize(
    ("fault", "hostfile", "named"),
    [
        ("wrong_name", ("node-1 slots=1", "node-9 slots=1"), "node-9: ssh: Could not resolve hostname node-9"),
        (
            "ssh_refused",
            ("node-1 slots=1", "node-2 slots=1"),
            "node-2: ssh: connect to host node-2 port 22: Connection refused",
        ),
    ],
)
def test_a_host_that_cannot_be_reached_is_named_and_nothing_is_started(
    fault: str, hostfile: tuple[str, ...], named: str, hosts: Hosts, tmp_path: Path, figures: Figures
) -> None:
    if fault == "ssh_refused":
        hosts.second.stop_sshd()
    began = time.monotonic()
    with HostfileJob(hosts, tmp_path, ["train", "absent.yaml"], hostfile=hostfile) as job:
        assert job.wait(seconds=30) == 2, job.output
    assert named in job.output
    assert lines_with(job.output, "1 of the 2 hosts", "hosts.txt")
    figures.record("nodes_unreachable", **{f"{fault}_seconds": time.monotonic() - began})


def test_a_port_that_is_taken_is_named_with_its_host(hosts: Hosts, tmp_path: Path, figures: Figures) -> None:
    port = free_port()
    program = "import socket, time; s = socket.create_server(('', PORT)); time.sleep(600)".replace("PORT", str(port))
    taker = hosts.first.start("python3", "-c", program)
    wait_until(lambda: hosts.first.listens_at(port))
    began = time.monotonic()
    with HostfileJob(hosts, tmp_path, ["train", "absent.yaml"], port=port) as job:
        assert job.wait_for_status(seconds=30) == 2, job.output
    seconds = time.monotonic() - began
    hosts.first.send(taker, signal.SIGKILL)
    taker.wait()
    assert lines_with(job.output, f"node-1: MASTER_PORT = {port}: ", "10.77.0.1")
    figures.record("nodes_unreachable", port_taken_seconds=seconds)


@pytest.mark.slow
def test_a_node_is_lost_and_the_run_resumes_without_it(
    hosts: Hosts, material: Material, undisturbed_run: RunConfig, tmp_path: Path, figures: Figures
) -> None:
    steps = 3 * STEPS
    config = material.config(tmp_path / "run", steps=steps)
    with start_training(hosts, config, tmp_path / "two") as job:
        wait_until(lambda: list((tmp_path / "run" / "checkpoints").glob("*/COMPLETE")) != [])
        hosts.second.lose()
        began = time.monotonic()
        assert job.wait(seconds=60) not in (0, 75), job.output
        seconds = time.monotonic() - began
    assert "host node-2" in job.output
    before = steps_made(job.output)
    assert before[-1] < steps
    with start_training(hosts, config, tmp_path / "one", hostfile=("node-1 slots=1",)) as job:
        assert job.wait(seconds=120) == 0, job.output
    again = steps_made(job.output)
    assert [record["step"] for record in records(config)] == list(range(1, steps + 1))
    assert losses(Path(config.run_dir))[:STEPS] == pytest.approx(losses(Path(undisturbed_run.run_dir)), rel=1e-4)
    figures.record(
        "node_lost",
        seconds=seconds,
        steps_lost=len(before) + len(again) - steps,
        steps_between_checkpoints=STEPS_BETWEEN_CHECKPOINTS,
    )


@pytest.mark.slow
def test_a_network_that_is_cut_for_five_seconds_does_no_harm(
    hosts: Hosts, material: Material, undisturbed_run: RunConfig, tmp_path: Path, figures: Figures
) -> None:
    config = material.config(tmp_path / "run")
    with start_training(hosts, config, tmp_path / "job") as job:
        job.wait_until_it_says(" · step 2/")
        hosts.cut_link()
        time.sleep(1)
        made = len(steps_made(job.output))
        time.sleep(4)
        assert len(steps_made(job.output)) == made < STEPS
        hosts.join_link()
        joined = time.monotonic()
        wait_until(lambda: len(steps_made(job.output)) > made)
        seconds = time.monotonic() - joined
        assert job.wait(seconds=120) == 0, job.output
    assert losses(Path(config.run_dir)) == losses(Path(undisturbed_run.run_dir))
    assert weights_sha256(config) == weights_sha256(undisturbed_run)
    figures.record("network_cut_briefly", seconds_to_go_on=seconds)


@pytest.mark.slow
def test_a_network_that_is_cut_for_ever_ends_the_job_on_both_sides(
    hosts: Hosts, material: Material, tmp_path: Path, figures: Figures
) -> None:
    config = material.config(tmp_path / "run", steps=MANY_STEPS, guard={"silence_seconds": SILENCE_SECONDS})
    with start_training(hosts, config, tmp_path / "job") as job:
        job.wait_until_it_says(" · step 3/")
        hosts.cut_link()
        began = time.monotonic()
        wait_until(lambda: lines_with(job.output, "rank 1 (host node-2", "no heartbeat") != [])
        found_seconds = time.monotonic() - began
        wait_until(lambda: hosts.second.processes() == {})
        other_side_seconds = time.monotonic() - began
        assert job.wait(seconds=SSH_LIMIT_SECONDS + 60) not in (0, 75), job.output
        seconds = time.monotonic() - began

    figures.record(
        "network_cut",
        silence_seconds=SILENCE_SECONDS,
        found_seconds=found_seconds,
        other_side_seconds=other_side_seconds,
        seconds=seconds,
    )


@pytest.mark.slow
def test_a_host_that_has_a_run_folder_of_its_own_is_named(
    hosts: Hosts, material: Material, tmp_path: Path, figures: Figures
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    hosts.second.run("mount", "-t", "tmpfs", "tmpfs", runs)
    try:
        with start_training(hosts, material.config(runs / "run"), tmp_path / "job") as job:
            assert job.wait(seconds=120) == 2, job.output
            seconds = time.time() - job.began
    finally:
        hosts.second.run("umount", runs)
    assert lines_with(job.output, "rank 1 on node-2 ", "run_dir", " s more")
    assert lines_with(job.output, f"run_dir: {runs / 'run'} of rank 0 on node-1 ", "rank 1 on node-2; ")
    assert list((runs / "run").glob(".shared-*")) == []
    figures.record("node_of_its_own_folder", seconds=seconds)


@pytest.mark.slow
def test_a_host_with_another_copy_of_the_code_is_named(
    hosts: Hosts, material: Material, tmp_path: Path, figures: Figures
) -> None:
    package, other = ROOT / "megaslm", tmp_path / "megaslm"
    shutil.copytree(package, other, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "slm" / "ranking.py").open("a") as source:
        source.write("# A change that this host alone has.\n")
    hosts.second.run("mount", "--bind", other, package)
    try:
        with start_training(hosts, material.config(tmp_path / "run"), tmp_path / "job") as job:
            assert job.wait(seconds=90) == 2, job.output
            seconds = time.time() - job.began
    finally:
        hosts.second.run("umount", package)
    assert lines_with(job.output, "megaslm's code", "rank 1 on node-2")
    figures.record("node_of_another_version", seconds=seconds)
