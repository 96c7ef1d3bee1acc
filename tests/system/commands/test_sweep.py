"""`megaslm sweep` with real runs: told to stop, resumed, with a run that fails, and as jobs of a queue."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megaslm.config.load import load
from megaslm.config.schema import RunConfig
from megaslm.dataset.manifest import read_manifest
from megaslm.sweep import plan_sweep
from tests.launched import ROOT
from tests.messages import Says, line_with
from tests.toy import SEQ_LEN, leave_run, make_dataset, run_config, write_config
from tests.training import changed, run_training

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


def leave_refused(settings: RunConfig, tokens: Path) -> Path:
    """A run that has learned with another rate: the launch that would resume it is refused."""
    run = leave_run(changed(settings, train={"lr": 1.0}), read_manifest(tokens))
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    (run / "checkpoints" / "step-00000001" / "COMPLETE").touch()
    return run


def test_a_run_that_fails_does_not_keep_others_from_it_and_a_stopped_one_is_resumed(
    config: Path, tmp_path: Path, says: Says
) -> None:
    here = tmp_path / "here.yaml"
    here.write_text("kind: local\nranks: 1\n")
    folder = tmp_path / "run.sweep"
    folder.mkdir()
    first, _, last = plan_sweep(config, "seed=1,2,3", []).runs
    settings = load(RunConfig, config, first.overrides).value
    other = leave_refused(settings, tmp_path / "tokens")
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
    assert any("--allow-changed train.lr" in line for line in lines)
    assert not (folder / "report.html").exists()

    shutil.rmtree(other)
    # As the same sweep would train it, in a process that starts in a moment.
    run_training(settings)
    result = tmp_path / "result.json"
    done = subprocess.run(
        command(config, here, "--json", str(result)), env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    says(line_with(done.stdout, f"{first.folder} "))
    runs = json.loads(result.read_text())
    assert [(run["value"], run["is_finished"]) for run in runs] == [("1", True), ("2", True)]
    assert runs[0]["losses"]["own/a"] != runs[1]["losses"]["own/a"]
    steps = (folder / "seed-2" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(steps[-1])["step"] == STEPS
    assert "seed-2 · step 2/" not in done.stdout, "a resumed run continues from its checkpoint"
    assert (folder / "report.html").exists()

    (folder / "report.html").unlink()
    leave_refused(load(RunConfig, config, last.overrides).value, tmp_path / "tokens")
    failed = subprocess.run(
        command(config, here, seeds="1,2,3"), env=environment(), capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert str(last.folder) in failed.stderr.splitlines()[-1]
    assert re.search(r'"sweep":\s*\{\s*"key":\s*"seed"', (folder / "report.html").read_text())


@pytest.mark.parametrize("status", [0, 3])
def test_a_queue_gets_each_run_that_has_not_begun(config: Path, tmp_path: Path, status: int) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sbatch").write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/submitted\nexit {status}\n')
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
    assert done.returncode == (1 if status else 0), done.stdout + done.stderr
    assert ("seed-1" in done.stderr) == ("seed-3" in done.stderr) == bool(status)
    submitted = (tmp_path / "submitted").read_text().splitlines()
    assert [line.split("seed=")[1].split()[0] for line in submitted] == ["1", "3"]
    assert str(begun) in done.stdout
    assert not (tmp_path / "run.sweep" / "report.html").exists()
