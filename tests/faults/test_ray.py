"""Prepare and score on a Ray cluster: a head and two nodes on this machine, one of which is killed."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from megaslm.preparing.prepare import prepare
from tests.corpus import content, recipe_of, text, write_corpus
from tests.faults.figures import Figures
from tests.forks import wait_until
from tests.launched import ROOT
from tests.scoring import NOTES, make_reference, rows_of, run_job, task_of
from tests.toy import make_dataset

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
SMALL = ["--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats"]


class Cluster:
    """A head, which takes no work, and nodes of one processor each."""

    def __init__(self, folder: Path) -> None:
        self._environment = os.environ | {"RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "disabled"}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        port = self.address.rpartition(":")[2]
        head = [*SMALL[1:], "--num-cpus=0", "--head", f"--port={port}", "--include-dashboard=false"]
        self._start(head)
        self.nodes = [self._start([*SMALL, f"--address={self.address}"]) for _ in range(2)]

    def kill_the_node_of(self, worker: int) -> bool:
        """All processes of the node that has this one, at once; whether there is one."""
        for node in self.nodes:
            members = [process for process in self._processes() if process.pid in node]
            members += [child for process in members for child in process.children(recursive=True)]
            if worker in {process.pid for process in members}:
                for process in members:
                    _kill(process)
                return True
        return False

    def stop(self) -> None:
        for process in self._processes():
            _kill(process)

    def run(self, *arguments: object) -> "subprocess.Popen[str]":
        """The command, on this cluster."""
        return subprocess.Popen(
            [sys.executable, "-m", "megaslm", *map(str, arguments), "--engine", "ray", "--ray-address", self.address],
            cwd=ROOT, env=self._environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def _start(self, options: list[str]) -> set[int]:
        before = {process.pid for process in self._processes()}
        ray = Path(sys.executable).with_name("ray")
        subprocess.run([ray, "start", *options], cwd=ROOT, env=self._environment, check=True, capture_output=True)
        return {process.pid for process in self._processes()} - before

    def _processes(self) -> list[psutil.Process]:
        """Those of this cluster."""
        folder = self._environment["RAY_TMPDIR"]
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and any(folder in word for word in process.cmdline()):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    # The names of sockets may have no more than about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder))
        try:
            yield cluster
        finally:
            cluster.stop()


def processes_at_work(ledger: Path) -> list[int]:
    """The processes that do a task now."""
    found = []
    for path in ledger.rglob("task-*.tries"):
        # A task that is done meanwhile has none any more.
        with suppress(FileNotFoundError):
            found.append(int(path.read_text().split()[-1]))
    return found


def end_with_a_node_killed(cluster: Cluster, job: "subprocess.Popen[str]", ledger: Path) -> float:
    """Kills a node at work once a task is done, and waits for the job, which succeeds. Returns the seconds it took."""
    at_work: list[int] = []

    def is_half_way() -> bool:
        at_work[:] = processes_at_work(ledger)
        return bool(list(ledger.rglob("task-*.json")) and at_work) or job.poll() is not None

    wait_until(is_half_way)
    assert at_work, job.communicate()
    assert cluster.kill_the_node_of(at_work[0])
    killed_at = time.monotonic()
    said = job.communicate(timeout=300)
    seconds = time.monotonic() - killed_at
    assert job.returncode == 0, said
    return seconds


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_ray
def test_a_node_that_is_killed_costs_its_tasks_of_prepare(cluster: Cluster, figures: Figures, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for number in range(6):
        (tmp_path / "corpus" / f"{number}.txt").write_text("\n\n".join(text(seed) for seed in range(4000)))
    sources = [{"domain": "words", "reader": "text", "paths": [str(tmp_path / "corpus" / "*.txt")]}]
    recipe = recipe_of(tmp_path, sources=sources, part_bytes=400_000)
    (tmp_path / "recipe.yaml").write_text(recipe.model_dump_json(), encoding="utf-8")
    prepare(recipe, tmp_path / "expected", workers=2)
    job = cluster.run("prepare", tmp_path / "recipe.yaml", tmp_path / "dataset")
    seconds = end_with_a_node_killed(cluster, job, tmp_path / "dataset" / ".prepare")
    assert content(tmp_path / "dataset") == content(tmp_path / "expected")
    figures.record("job_ray_node_killed", ended_seconds=seconds)


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_ray
def test_a_node_that_is_killed_costs_its_tasks_of_score(cluster: Cluster, figures: Figures, tmp_path: Path) -> None:
    make_reference(tmp_path / "model")
    # Five ranges of one part, two of another, and a part that is one task.
    make_dataset(tmp_path / "tokens", {("train", "a"): [70_000, 20_000], ("train", "b"): [8_000]})
    task = task_of(tmp_path / "model", tmp_path / "tokens", tmp_path / "scored", batch_rows=64)
    run_job(1, task)
    options = ["--reference", task.reference, "--batch-rows", 64]
    job = cluster.run("score", task.dataset, tmp_path / "on-ray", *options)
    seconds = end_with_a_node_killed(cluster, job, tmp_path / "on-ray" / NOTES)
    assert rows_of(tmp_path / "on-ray") == rows_of(tmp_path / "scored")
    figures.record("job_ray_node_killed_scoring", ended_seconds=seconds)


def test_an_address_that_answers_nobody_is_named_at_once(tmp_path: Path) -> None:
    recipe = recipe_of(write_corpus(tmp_path))
    (tmp_path / "recipe.yaml").write_text(recipe.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "megaslm", "prepare", str(tmp_path / "recipe.yaml"), str(tmp_path / "dataset")]
    for address, kind in (
        ("127.0.0.1:9", "LaunchError"),
        ("nowhere", "ConfigError"),
        ("127.0.0.1:999999", "ConfigError"),
    ):
        job = subprocess.run(
            [*command, "--engine", "ray", "--ray-address", address],
            cwd=ROOT, text=True, capture_output=True, check=False, timeout=60,
        )  # fmt: skip
        assert job.returncode == 2, job.stderr
        assert job.stderr.startswith(kind)
        assert address in job.stderr
    assert not (tmp_path / "dataset").exists()


def _kill(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return
