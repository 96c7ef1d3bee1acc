"""The script that starts a job on one host, tried with a job that only looks around."""

import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from psutil import NoSuchProcess, Process

from tests.forks import wait_until
from tests.messages import Says
from tests.toy import place_of, run_config, write_config

LAUNCHER = Path(__file__).resolve().parents[3] / "launcher"

JOB = """
import json, os, pathlib, signal, sys, time
rank, verb = os.environ["RANK"], sys.argv[1]
told = []
if verb in ("stop", "stay"):
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: told.append(signal.Signals(number).name))
pathlib.Path(f"rank-{rank}.json").write_text(json.dumps([sys.argv[1:], os.environ["WORLD_SIZE"]]))
if verb == "exit":
    if rank == "1" and sys.argv[2] != "0":
        print("SomeError: why", file=sys.stderr)
    sys.exit(int(sys.argv[2]) if rank == "1" else 0)
if verb == "die" and rank == "1":
    os.kill(os.getpid(), signal.SIGKILL)
deadline = time.monotonic() + 120
while time.monotonic() < deadline:
    time.sleep(0.05)
    if told and verb == "stop":
        time.sleep(1)
        pathlib.Path(f"saved-{rank}").write_text(told[0])
        sys.exit(75)
"""


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder whose `megaslm` is the job above; `python -m` looks there first."""
    (tmp_path / "megaslm").mkdir()
    (tmp_path / "megaslm" / "__init__.py").touch()
    (tmp_path / "megaslm" / "__main__.py").write_text(JOB, encoding="utf-8")
    return tmp_path


def start(workplace: Path, script: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "MASTER_PORT": port, "RANKS": "2", "CUDA_VISIBLE_DEVICES": "", **variables}
    pipe = subprocess.PIPE
    command = [str(LAUNCHER / script), *arguments]
    return subprocess.Popen(command, cwd=workplace, env=environment, stdout=pipe, stderr=pipe, text=True)


def status_of(workplace: Path, script: str, *arguments: str) -> int:
    with start(workplace, script, *arguments) as job:
        job.communicate(timeout=120)
        return job.returncode


def test_help_is_instant_and_no_arguments_are_a_mistake(workplace: Path) -> None:
    with start(workplace, "local.sh", "--help") as job:
        output, _ = job.communicate(timeout=20)
    assert job.returncode == 0
    assert "launcher/local.sh" in output
    assert status_of(workplace, "local.sh") == 2


def test_what_a_rank_would_refuse_is_told_before_deepspeed_starts(workplace: Path) -> None:
    """By one process, with --check. Of the ranks, each would say it."""
    refusing = "import sys; print('InputError: why', sys.argv[1:], file=sys.stderr); sys.exit(2)"
    (workplace / "megaslm" / "__main__.py").write_text(refusing, encoding="utf-8")
    with start(workplace, "local.sh", "train", "run.yaml", "--resume") as job:
        output, errors = job.communicate(timeout=60)
    assert job.returncode == 2
    assert output == ""
    told = ["launch: 2 ranks on this host: megaslm train run.yaml --resume"]
    assert errors.splitlines() == [*told, "InputError: why ['train', 'run.yaml', '--resume', '--check']"]


def test_an_input_that_is_missing_is_told_before_deepspeed_starts(tmp_path: Path, says: Says) -> None:
    """The check sees the inputs: it is that of ranks on one host. A rank would say first what it is going to do."""
    config = write_config(tmp_path / "run.yaml", run_config(tmp_path / "run", tmp_path / "missing"))
    with start(tmp_path, "local.sh", "train", str(config)) as job:
        output, errors = job.communicate(timeout=60)
    assert (job.returncode, output) == (2, "")
    says(errors, tmp_path / "missing", PLACE=place_of(config, "train: "))


@pytest.mark.parametrize("ranks", ["a[$(touch pwned)]", "0", "two", "2\n2"])
def test_a_number_of_ranks_is_a_number(workplace: Path, ranks: str) -> None:
    """In bash's arithmetic a name may hold commands."""
    with start(workplace, "local.sh", "exit", "0", RANKS=ranks) as job:
        _, errors = job.communicate(timeout=20)
    assert job.returncode == 2
    assert errors.startswith("RANKS = ")
    assert not (workplace / "pwned").exists()


@pytest.mark.parametrize(
    ("gpus", "ranks", "named"),
    [
        ("0,1", "3", ": 0,1;"),
        ("GPU-8932f937", "1", "CUDA_VISIBLE_DEVICES = GPU-8932f937: "),
        ("-1", "1", "CUDA_VISIBLE_DEVICES = -1: "),
    ],
)
def test_each_rank_takes_a_gpu_by_its_number(workplace: Path, gpus: str, ranks: str, named: str, says: Says) -> None:
    with start(workplace, "local.sh", "exit", "0", CUDA_VISIBLE_DEVICES=gpus, RANKS=ranks) as job:
        _, errors = job.communicate(timeout=20)
    assert job.returncode == 2
    says(errors, named)


def test_a_program_that_is_needed_and_not_there_is_named(workplace: Path, says: Says) -> None:
    """A container may be without it, and would take a job that saves for one that has no ranks."""
    programs = workplace / "bin"
    programs.mkdir()
    for name in ("bash", "dirname", "flock", "uname"):
        (programs / name).symlink_to(shutil.which(name) or "absent")
    with start(workplace, "local.sh", "exit", "0", PATH=str(programs)) as job:
        _, errors = job.communicate(timeout=20)
    assert job.returncode == 2
    says(errors, "pgrep", HOST=socket.gethostname())


def has_a_launcher(script: int) -> bool:
    """Whether DeepSpeed's has been started; other children of the script come and go."""
    for child in Process(script).children():
        with suppress(NoSuchProcess):
            if any("deepspeed" in word for word in child.cmdline()):
                return True
    return False


def test_a_job_that_is_told_before_it_has_ranks_may_be_started_again(workplace: Path) -> None:
    with start(workplace, "local.sh", "stay") as job:
        # DeepSpeed's launcher then imports for seconds.
        wait_until(lambda: has_a_launcher(job.pid))
        time.sleep(0.2)
        job.send_signal(signal.SIGTERM)
        job.communicate(timeout=60)
    assert job.returncode == 75
    assert not (workplace / "rank-0.json").exists()


def test_a_driver_that_fails_makes_no_run_on_cpus(workplace: Path, says: Says) -> None:
    broken = workplace / "nvidia-smi"
    broken.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n", encoding="utf-8")
    broken.chmod(0o755)
    environment = {**os.environ, "PATH": f"{workplace}:{os.environ['PATH']}"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    command = [str(LAUNCHER / "local.sh"), "exit", "0"]
    done = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    says(done.stderr, "nvidia-smi: NVIDIA-SMI has failed", "CUDA_VISIBLE_DEVICES=")


def test_a_gpu_that_is_not_there_is_named(workplace: Path, says: Says) -> None:
    """Its rank would find no GPU, and train on a CPU."""
    driver = workplace / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 0\necho 1\n", encoding="utf-8")
    driver.chmod(0o755)
    path = f"{workplace}:{os.environ['PATH']}"
    with start(workplace, "local.sh", "exit", "0", CUDA_VISIBLE_DEVICES="1,7", RANKS="1", PATH=path) as job:
        _, errors = job.communicate(timeout=20)
    assert job.returncode == 2
    says(errors, "CUDA_VISIBLE_DEVICES = 1,7", "GPU 7", "0,1")


@pytest.mark.slow
def test_every_rank_gets_the_arguments_unchanged(workplace: Path) -> None:
    hostile = [
        "run_dir=a b;*$HOME",
        "{x: [1]}",
        "$(touch pwned)",
        "`touch pwned`",
        "a\nb",
        'it\'s "so"',
        "a && touch pwned",
    ]
    arguments = ["exit", "0", "--set", *hostile]
    assert status_of(workplace, "local.sh", *arguments) == 0
    for rank in (0, 1):
        assert json.loads((workplace / f"rank-{rank}.json").read_text()) == [arguments, "2"]
    assert not (workplace / "pwned").exists()


@pytest.mark.slow
@pytest.mark.parametrize("status", [1, 2, 75])
def test_the_status_is_the_jobs_and_the_last_word_the_ranks(workplace: Path, status: int) -> None:
    with start(workplace, "local.sh", "exit", str(status)) as job:
        output, errors = job.communicate(timeout=120)
    assert job.returncode == status
    # DeepSpeed's launcher writes its report there.
    assert output == ""
    first, last = f"launch: 2 ranks on this host: megaslm exit {status}", "SomeError: why"
    ours = ["launch: ended with status 1; the first error above is the reason"] if status == 1 else []
    assert errors.splitlines() == [first, last, *ours]


@pytest.mark.slow
def test_a_killed_rank_fails_the_job(workplace: Path, says: Says) -> None:
    with start(workplace, "local.sh", "die") as job:
        output, errors = job.communicate(timeout=120)
    assert job.returncode not in (0, 75)
    says(output + errors, "SIGKILL")


@pytest.mark.slow
def test_gpus_are_chosen_without_a_word_of_deepspeed(workplace: Path, says: Says) -> None:
    """DeepSpeed would print that it ignores CUDA_VISIBLE_DEVICES."""
    gpus = {"CUDA_VISIBLE_DEVICES": "0", "RANKS": "1", "DS_ACCELERATOR": "cpu"}
    with start(workplace, "local.sh", "exit", "0", **gpus) as job:
        output, errors = job.communicate(timeout=120)
    assert (job.returncode, output) == (0, "")
    says(errors, "1 rank", "GPUs 0", "megaslm exit 0")


def test_a_port_that_is_taken_is_named_before_ranks_are_started(workplace: Path, says: Says) -> None:
    for cluster in ("", "my cluster.yaml"):
        with socket.create_server(("", 0)) as taken:
            port = taken.getsockname()[1]
            with start(workplace, "local.sh", "stay", MASTER_PORT=str(port), MEGASLM_CLUSTER=cluster) as job:
                _, errors = job.communicate(timeout=60)
        assert job.returncode == 2
        says(errors, "somebody listens there", PORT=port, NEXT=port + 1, HOST=socket.gethostname())
    assert not (workplace / "rank-0.json").exists()


def test_jobs_that_start_at_once_without_a_port_take_different_free_ones(workplace: Path) -> None:
    """The number of the script's process chooses a port; a taken one is passed over."""
    telling = "import os, sys; print(os.environ['MASTER_PORT'], file=sys.stderr); sys.exit(2)"
    (workplace / "megaslm" / "__main__.py").write_text(telling, encoding="utf-8")
    jobs = [start(workplace, "local.sh", "train", "run.yaml", MASTER_PORT="") for _ in range(3)]
    told = [job.communicate(timeout=60)[1].splitlines()[-1] for job in jobs]
    assert len(set(told)) == len(jobs)

    # The script inherits the socket, with the number of this process.
    taking = (
        "import os, socket, sys\n"
        "taken = socket.create_server(('127.0.0.1', 20000 + os.getpid() % 10000))\n"
        "taken.set_inheritable(True)\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", taking, str(LAUNCHER / "local.sh"), "train", "run.yaml"]
    environment = {**os.environ, "MASTER_PORT": "", "RANKS": "2", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert 20000 <= int(done.stderr.splitlines()[-1]) < 30000


@pytest.mark.slow
@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_every_rank_save(workplace: Path, told: signal.Signals) -> None:
    with start(workplace, "local.sh", "stop") as job:
        _wait_for_ranks(workplace)
        job.send_signal(told)
        job.communicate(timeout=60)
    assert job.returncode == 75
    named = "SIGINT" if told == signal.SIGINT else "SIGTERM"
    assert [(workplace / f"saved-{rank}").read_text() for rank in (0, 1)] == [named, named]


@pytest.mark.slow
@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_ranks_that_do_not_listen_yet_have_nothing_to_save(workplace: Path, told: signal.Signals) -> None:
    with start(workplace, "local.sh", "import") as job:
        _wait_for_ranks(workplace)
        job.send_signal(told)
        _, errors = job.communicate(timeout=60)
    assert job.returncode == 75
    assert ("Ctrl-C" in errors.splitlines()[-1]) == (told == signal.SIGINT)


@pytest.mark.slow
def test_the_key_on_a_terminal_lets_every_rank_save(workplace: Path) -> None:
    """The terminal tells its foreground processes, to which the ranks do not belong."""
    environment = {**os.environ, "RANKS": "2", "CUDA_VISIBLE_DEVICES": ""}
    job, terminal = pty.fork()
    if job == 0:
        os.chdir(workplace)
        os.execve(LAUNCHER / "local.sh", ["local.sh", "stop"], environment)
    _wait_for_ranks(workplace)
    os.write(terminal, b"\x03")
    with suppress(OSError):
        while os.read(terminal, 1 << 16):
            pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(job, 0)[1]) == 75
    assert [(workplace / f"saved-{rank}").read_text() for rank in (0, 1)] == ["SIGINT", "SIGINT"]


@pytest.mark.slow
def test_a_second_ctrl_c_ends_a_job_at_once(workplace: Path) -> None:
    """One that follows at once is the same: a program that wraps the script has passed it on."""
    with start(workplace, "local.sh", "stay") as job:
        _wait_for_ranks(workplace)
        for seconds in (0, 0.2, 1):
            time.sleep(seconds)
            assert job.poll() is None
            job.send_signal(signal.SIGINT)
        _, errors = job.communicate(timeout=20)
    assert job.returncode == 130
    assert "Ctrl-C" in errors.splitlines()[-1]
    # Bash tells of a job that was killed.
    assert "stopping.sh" not in errors


@pytest.mark.slow
def test_a_script_and_the_one_that_started_it_may_both_be_told(workplace: Path) -> None:
    with start(workplace, "local.sh", "stop") as job:
        _wait_for_ranks(workplace)
        job.send_signal(signal.SIGUSR1)
        time.sleep(0.3)
        job.send_signal(signal.SIGUSR1)
        job.communicate(timeout=60)
    assert job.returncode == 75
    assert sorted(path.name for path in workplace.glob("saved-*")) == ["saved-0", "saved-1"]


@pytest.mark.slow
def test_a_signal_ten_seconds_after_the_first_ends_a_job_that_does_not_stop(workplace: Path) -> None:
    with start(workplace, "local.sh", "stay") as job:
        _wait_for_ranks(workplace)
        job.send_signal(signal.SIGTERM)
        time.sleep(5)
        job.send_signal(signal.SIGTERM)
        time.sleep(7)
        assert job.poll() is None
        job.send_signal(signal.SIGTERM)
        job.communicate(timeout=20)
    assert job.returncode not in (0, 75)


def _wait_for_ranks(workplace: Path) -> None:
    deadline = time.monotonic() + 60
    while len(list(workplace.glob("rank-*.json"))) < 2:
        assert time.monotonic() < deadline, "the ranks did not start"
        time.sleep(0.1)
