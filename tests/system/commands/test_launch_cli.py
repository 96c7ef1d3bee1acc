"""`megaslm launch` as a user gives it: mistakes show before anything is started, and what is printed is what is run."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.launched import ROOT
from tests.messages import Says

RUN = "configs/demo/slm.yaml"


def launch(*arguments: str | Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "megaslm", "launch", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--cluster", "launcher/nowhere.yaml", RUN), "ConfigError: launcher/nowhere.yaml"),
        (("--cluster", "launcher/local.yaml", "nowhere.yaml"), "ConfigError: nowhere.yaml"),
        (("--cluster", "launcher/slurm.yaml", RUN, "--set", "slm.keep_ratio=1.4"), "slm.keep_ratio = 1.4"),
        (("--cluster", "launcher/slurm.yaml", RUN, "--allow-changed", "seed"), "ConfigError: --allow-changed seed"),
        (("--cluster", "launcher/slurm.yaml", "prepare", "nowhere.yaml", "out"), "ConfigError: nowhere.yaml"),
        (("--cluster", "launcher/slurm.yaml", "verify", "in"), "verify"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_starts(arguments: tuple[str, ...], named: str, says: Says) -> None:
    done = launch(*arguments, PATH="/nowhere")
    assert done.returncode == 2
    says(done.stderr, named)
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize(("words", "named"), [((RUN, "--resum"), "--resum"), (("score", "in"), "output")])
def test_words_that_the_verb_would_not_take_start_nothing(words: tuple[str, ...], named: str) -> None:
    done = launch("--cluster", "launcher/slurm.yaml", *words, PATH="/nowhere")
    assert done.returncode == 2
    assert named in done.stderr


def test_a_dry_run_prints_what_a_shell_takes() -> None:
    done = launch("--cluster", "launcher/local.yaml", "--dry-run", RUN, "--set", "run_dir=a $(b) 'c'")
    assert done.returncode == 0, done.stderr
    assert shlex.split(done.stdout) == [
        "MASTER_PORT=29500",
        f"{ROOT}/launcher/local.sh",
        "train",
        RUN,
        "--set",
        "run_dir=a $(b) 'c'",
    ]
    named = launch("--cluster", "launcher/local.yaml", "--dry-run", "train", RUN, "--set", "run_dir=a $(b) 'c'")
    assert named.stdout == done.stdout


@pytest.mark.parametrize("words", [("--smoke",), ("--smoke-steps", "9")])
def test_a_smoke_test_is_started_once(words: tuple[str, ...]) -> None:
    done = launch("--cluster", "launcher/torchrun.yaml", "--dry-run", RUN, *words)
    assert done.returncode == 0, done.stderr
    started = ["MAX_RESTARTS=0", f"{ROOT}/launcher/torchrun.sh", "train", RUN, *words]
    assert shlex.split(done.stdout)[-len(started) :] == started


def test_a_dry_run_for_kubernetes_prints_manifests() -> None:
    done = launch("--cluster", "launcher/kubernetes.yaml", "--dry-run", RUN)
    assert done.returncode == 0, done.stderr
    assert [document["kind"] for document in yaml.safe_load_all(done.stdout)] == ["Service", "Job"]


def test_kubectl_reads_the_manifests_and_its_status_is_the_commands(tmp_path: Path) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$@"\ncat >{tmp_path}/given\nexit 7\n', encoding="utf-8")
    kubectl.chmod(0o755)
    done = launch("--cluster", "launcher/kubernetes.yaml", RUN, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 7, done.stderr
    assert done.stdout == "create -f -\n"
    shown = launch("--cluster", "launcher/kubernetes.yaml", "--dry-run", RUN)
    assert (tmp_path / "given").read_text() == shown.stdout


@pytest.fixture
def looking_around(tmp_path: Path) -> Path:
    """A folder whose `megaslm` writes down what it was given; the launcher's `python -m` looks there first."""
    (tmp_path / "megaslm").mkdir()
    (tmp_path / "megaslm" / "__init__.py").touch()
    (tmp_path / "megaslm" / "__main__.py").write_text(
        "import json, os, sys, pathlib\n"
        "given = [sys.argv[1:], os.environ['VALUE']]\n"
        "pathlib.Path(f\"rank-{os.environ['RANK']}.json\").write_text(json.dumps(given))\n",
        encoding="utf-8",
    )
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "torchrun"])
def test_hostile_values_reach_every_rank_as_they_are(looking_around: Path, kind: str) -> None:
    value = 'a b\n$(touch pwned) `touch pwned` "it\'s" ; touch pwned ${local_rank} $$ \\'
    place = looking_around / 'my cluster\'s "file".yaml'
    ranks = {"local": {"ranks": 2}, "torchrun": {"ranks_per_node": 2, "max_restarts": 0}}[kind]
    place.write_text(yaml.safe_dump({"kind": kind, **ranks, "environment": {"VALUE": value}}), encoding="utf-8")
    run = looking_around / "a run's $(file).yaml"
    run.write_text(f"base: {ROOT}/{RUN}\nseed: 1\n", encoding="utf-8")
    folder = looking_around / f"{value.replace('/', '')}"
    arguments = ["--set", f"run_dir={json.dumps(str(folder))}"]
    shown = launch("--cluster", place, "--dry-run", run, *arguments)
    assert shown.returncode == 0, shown.stderr
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        ["bash", "-c", shown.stdout], cwd=looking_around, env=environment, check=True, capture_output=True, timeout=120
    )
    for rank in (0, 1):
        given = json.loads((looking_around / f"rank-{rank}.json").read_text())
        assert given == [["train", str(run), *arguments], value]
    assert not (looking_around / "pwned").exists()
