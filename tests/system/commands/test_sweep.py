"""`megaslm sweep` with real runs: told to stop, resumed, with a run that fails, and as jobs of a queue."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launched import ROOT
from tests.toy import SEQ_LEN, make_dataset, run_config, write_config

STEPS = 60


@pytest.fixture
def config(tmp_path: Path) -> Path:
    make_dataset(tmp_path / "tokens", {("train", "a"): [40], ("heldout", "a"): [2]})
    train = {"total_tokens": STEPS * 8 * SEQ_LEN}
    run = run_config(
        tmp_path / "run",
        tmp_path / "tokens",
        train=train,
        validation={"sets": {"own": {"dataset": str(tmp_path / "tokens")}}},
    )
    return write_config(tmp_path / "run.yaml", run)


def command(config: Path, cluster: Path, *arguments: str, seeds: str = "1,2") -> list[str]:
    sweep = (sys.executable, "-m", "megaslm", "sweep", str(config), "--over", f"seed={seeds}")
    return [*sweep, "--cluster", str(cluster), *arguments]


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}


def test_it_is_stopped_and_resumed_and_goes_on_after_a_run_that_fails(config: Path, tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as probe:
        port = probe.getsockname()[1]
    here = tmp_path / "here.yaml"
    here.write_text(f"kind: local\nranks: 1\nmaster_port: {port}\n")
    folder = tmp_path / "run.sweep"
    stopped = subprocess.Popen(
        command(config, here), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert stopped.stdout is not None
    lines = []
    for line in stopped.stdout:
        lines.append(line)
        if " · step 2/" in line:
            stopped.send_signal(signal.SIGTERM)
    assert stopped.wait() == 75, "".join(lines)
    assert not (folder / "report.html").exists()

    blocked = folder / "seed-2"
    blocked.write_text("not a folder\n")
    failed = subprocess.run(command(config, here), env=environment(), capture_output=True, text=True, check=False)
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "seed-2" in failed.stderr.splitlines()[-1]
    assert (folder / "report.html").exists()

    blocked.unlink()
    result = tmp_path / "result.json"
    done = subprocess.run(
        command(config, here, "--json", str(result)), env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    runs = json.loads(result.read_text())
    assert [(run["value"], run["is_finished"]) for run in runs] == [("1", True), ("2", True)]
    losses = [run["losses"]["own/a"] for run in runs]
    assert len(set(losses)) == 2
    begun = [line for line in done.stdout.splitlines() if " · step 2/" in line]
    assert len(begun) == 1, "runs that are finished are not trained again"
    last = json.loads((folder / "seed-1" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == STEPS


def test_a_queue_gets_each_run_that_has_not_begun(config: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sbatch").write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/submitted\n')
    (programs / "sbatch").chmod(0o755)
    cluster = tmp_path / "queue.yaml"
    cluster.write_text("kind: slurm\nnodes: 1\nranks_per_node: 1\n")
    begun = tmp_path / "run.sweep" / "seed-2"
    begun.mkdir(parents=True)
    (begun / "config.yaml").write_bytes(config.read_bytes())
    done = subprocess.run(
        command(config, cluster, seeds="1,2,3"),
        env=environment(PATH=f"{programs}:{os.environ['PATH']}"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    submitted = (tmp_path / "submitted").read_text().splitlines()
    assert [line.split("seed=")[1].split()[0] for line in submitted] == ["1", "3"]
    assert str(begun) in done.stdout
    assert not (tmp_path / "run.sweep" / "report.html").exists()
