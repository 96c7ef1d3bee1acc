"""Training and scoring on two hosts by launcher/hostfile.sh: what comes out is what one host gives."""

import json
import signal
import time
from pathlib import Path

import pytest

from megaslm.config.schema import RunConfig
from tests.faults.figures import Figures
from tests.faults.runs import STEPS, Material, records, steps_made, weights_sha256
from tests.forks import wait_until
from tests.integration.conftest import write_config
from tests.multinode.hostfile_job import HostfileJob
from tests.multinode.hosts import Hosts
from tests.scoring import make_reference, rows_of
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("remote_shell", "told"),
    [("pdsh", signal.SIGTERM), ("pdsh", signal.SIGUSR1), ("ssh", signal.SIGTERM), ("ssh", signal.SIGINT)],
)
def test_a_job_that_is_told_to_stop_saves_and_goes_on_later(
    remote_shell: str, told: signal.Signals, hosts: Hosts, material: Material, tmp_path: Path, figures: Figures
) -> None:
    config = material.config(tmp_path / "run", steps=MANY_STEPS)
    arguments = ["train", write_config(tmp_path / "run.yaml", config), "--resume"]
    with HostfileJob(hosts, tmp_path / "told", arguments, remote_shell=remote_shell) as job:
        job.wait_until_it_says(" · step 3/")
        job.send(told)
        began = time.monotonic()
        assert job.wait(seconds=60) == 75, job.output
        seconds = time.monotonic() - began
    made = steps_made(job.output)
    assert f"step {made[-1]} is saved" in job.output
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
    for number, part in enumerate((" check ", "deepspeed.launcher.runner", "-u -m megaslm")):
        with HostfileJob(hosts, tmp_path / str(number), arguments, remote_shell=remote_shell) as job:
            wait_until(lambda part=part: any(part in command for command in hosts.processes().get("node-1", [])))
            job.send(signal.SIGTERM)
            assert job.wait(seconds=60) == 75, job.output


JOB = """
import json, os, pathlib, sys, time
rank = os.environ["RANK"]
pathlib.Path(f"rank-{rank}.json").write_text(json.dumps([sys.argv[1:], dict(os.environ)]))
if sys.argv[1] == "stay" or rank == "0" and sys.argv[1] == "fail":
    time.sleep(600)
if sys.argv[1] == "fail":
    sys.exit(2)
"""


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder whose `megaslm` only looks around; `python -m` looks there first."""
    (tmp_path / "megaslm").mkdir()
    (tmp_path / "megaslm" / "__init__.py").touch()
    (tmp_path / "megaslm" / "__main__.py").write_text(JOB)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("remote_shell", ["pdsh", "ssh"])
def test_ranks_get_arguments_and_named_variables_unchanged_and_nothing_else(
    remote_shell: str, hosts: Hosts, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = {
        "PLAIN": "a",
        "EMPTY": "",
        "BLANKS": "a  b",
        "QUOTES": 'it\'s "so"',
        "COMMANDS": "$(touch pwned); `touch pwned` && touch pwned",
        "SIGNS": r"\ * ? ~ # ! [a] {b} \\ $HOME",
        "PERCENT": "%h %u %n %% 50%",
    }
    for name in ("NCCL_SOCKET_IFNAME", "PYTHONHASHSEED", "UNNAMED"):
        monkeypatch.setenv(name, "7")
    arguments = ["look", "--set", "a.b=c,d", "x@y:z%h+%n^_"]
    with HostfileJob(hosts, workplace, arguments, remote_shell=remote_shell, exported=hostile) as job:
        assert job.wait(seconds=60) == 0, job.output
    for rank in ("0", "1"):
        found, environment = json.loads((workplace / f"rank-{rank}.json").read_text())
        assert found == arguments
        assert {name: environment.get(name) for name in hostile} == hostile
        assert not {"NCCL_SOCKET_IFNAME", "PYTHONHASHSEED", "UNNAMED"} & set(environment)
        assert environment["MASTER_ADDR"] == hosts.first.address
        assert (environment["RANK"], environment["WORLD_SIZE"], environment["LOCAL_SIZE"]) == (rank, "2", "1")
    assert not list(workplace.rglob("pwned"))


@pytest.mark.slow
@pytest.mark.parametrize("remote_shell", ["pdsh", "ssh"])
def test_a_script_that_is_killed_leaves_nothing_on_any_host(
    remote_shell: str, hosts: Hosts, workplace: Path, figures: Figures
) -> None:
    with HostfileJob(hosts, workplace, ["stay"], remote_shell=remote_shell) as job:
        _wait_for_ranks(workplace)
        job.send(signal.SIGKILL)
        began = time.monotonic()
        wait_until(lambda: hosts.processes() == {})
    figures.record("launcher_killed", **{f"{remote_shell}_seconds": time.monotonic() - began})


@pytest.mark.slow
@pytest.mark.parametrize("remote_shell", ["pdsh", "ssh"])
def test_a_host_that_fails_before_the_ranks_meet_ends_the_job_after_a_minute(
    remote_shell: str, hosts: Hosts, workplace: Path, figures: Figures
) -> None:
    """Where the ranks have met, those of the other hosts end much sooner by themselves."""
    with HostfileJob(hosts, workplace, ["fail"], remote_shell=remote_shell) as job:
        _wait_for_ranks(workplace)
        began = time.monotonic()
        assert job.wait(seconds=90) not in (0, 75)
    assert "a host failed 60 s ago; what is left of the job is ended" in job.output
    figures.record("node_failed_early", **{f"{remote_shell}_seconds": time.monotonic() - began})


@pytest.mark.slow
def test_a_second_telling_after_ten_seconds_ends_a_job_that_does_not_stop(hosts: Hosts, workplace: Path) -> None:
    with HostfileJob(hosts, workplace, ["stay"]) as job:
        _wait_for_ranks(workplace)
        # It does not listen, and would be killed by the first telling only after twenty seconds.
        job.send(signal.SIGTERM)
        time.sleep(11)
        assert job.is_running
        job.send(signal.SIGTERM)
        assert job.wait(seconds=30) not in (0, 75)


def _wait_for_ranks(workplace: Path) -> None:
    wait_until(lambda: len(list(workplace.glob("rank-*.json"))) == 2)
