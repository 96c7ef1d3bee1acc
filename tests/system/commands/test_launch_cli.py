"""`megaslm launch` as a user gives it: mistakes show before anything is started, and what is printed is what is run."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megaslm.config.load import load
from megaslm.config.schema import RunConfig
from megaslm.dataset.manifest import read_manifest
from tests.launched import ROOT
from tests.messages import Says
from tests.toy import leave_run, make_dataset, run_config, write_config

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


def place_of(run: Path, setting: str) -> str:
    """The line of a run's file that sets a setting."""
    return load(RunConfig, run).provenance[setting]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that could start, as a file of an unwieldy name."""
    make_dataset(tmp_path / "tokens", {("train", "a"): [12]})
    return write_config(tmp_path / "a run's $(file).yaml", run_config(tmp_path / "run", tmp_path / "tokens"))


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """This host as a cluster, with a port that is free."""
    with socket.create_server(("", 0)) as probe:
        port = probe.getsockname()[1]
    place = tmp_path / "here.yaml"
    place.write_text(f"kind: local\nranks: 2\nmaster_port: {port}\n", encoding="utf-8")
    return place


def test_a_dry_run_prints_what_a_shell_takes(run: Path, here: Path) -> None:
    done = launch("--cluster", here, "--dry-run", run, "--set", "run_dir=a $(b) 'c'")
    assert done.returncode == 0, done.stderr
    assert shlex.split(done.stdout)[2:] == [
        f"{ROOT}/launcher/local.sh",
        "train",
        str(run),
        "--set",
        "run_dir=a $(b) 'c'",
    ]
    named = launch("--cluster", here, "--dry-run", "train", run, "--set", "run_dir=a $(b) 'c'")
    assert named.stdout == done.stdout


def test_a_dry_run_names_all_that_is_missing(run: Path, here: Path, says: Says) -> None:
    """The command is printed all the same."""
    shutil.rmtree(run.parent / "tokens")
    sets = 'validation.sets={x: {dataset: "no/where"}}'
    done = launch("--cluster", here, "--dry-run", run, "--set", sets)
    assert done.returncode == 2
    says(done.stderr, "data.train", "validation.sets.x (--set)", "no/where", PLACE=place_of(run, "data.train"))
    assert str(ROOT / "launcher" / "local.sh") in done.stdout


def test_a_dry_run_asks_the_hosts(run: Path, says: Says) -> None:
    """Through the launcher's own checks, with an ssh that knows one host of two, and without pdsh."""
    folder = run.parent
    (folder / "hosts.txt").write_text("node-1 slots=1\nnode-2 slots=1\n", encoding="utf-8")
    (folder / "cluster.yaml").write_text(f"kind: hostfile\nhostfile: {folder}/hosts.txt\n", encoding="utf-8")
    # The launcher takes no file of such a name to other hosts.
    plain = run.rename(folder / "run.yaml")
    programs = folder / "bin"
    programs.mkdir()
    ssh = 'case "$*" in *node-2*) echo "ssh: Could not resolve hostname node-2" >&2; exit 255;; esac'
    (programs / "ssh").write_text(f"#!/bin/sh\n{ssh}\n", encoding="utf-8")
    (programs / "ssh").chmod(0o755)
    needed = ("bash", "date", "dirname", "python", "paste", "sed", "sort", "uniq", "uname", "flock", "pgrep", "pkill")
    for name in (*needed, "setsid"):
        (programs / name).symlink_to(shutil.which(name) or "absent")
    done = launch("--cluster", folder / "cluster.yaml", "--dry-run", plain, PATH=str(programs))
    assert done.returncode == 2
    says(done.stderr, "remote_shell: ssh in", "node-2: ssh: Could not resolve", "1 of the 2 hosts")


def test_a_dry_run_is_fast_because_it_imports_no_torch(run: Path, here: Path) -> None:
    program = (
        "import sys, megaslm.cli\n"
        "try:\n    megaslm.cli.main()\n"
        "finally:\n    assert not {'torch', 'transformers', 'deepspeed', 'streaming'} & set(sys.modules)\n"
    )
    words = [sys.executable, "-c", program, "launch", "--cluster", str(here), "--dry-run", str(run)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Assertion" not in done.stderr


@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_missing_is_told_before_torch_is_imported(run: Path, rank: int, says: Says) -> None:
    """On each rank of one host, so that none waits for another; by the first rank. Nothing is made."""
    shutil.rmtree(run.parent / "tokens")
    program = (
        "import sys, megaslm.cli\n"
        "try:\n    megaslm.cli.main()\n"
        "finally:\n    assert not {'torch', 'transformers', 'deepspeed', 'streaming'} & set(sys.modules)\n"
    )
    seat = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **seat, **meeting}
    words = [sys.executable, "-c", program, "train", str(run), "--resume"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 2, done.stderr
    assert not (run.parent / "run").exists()
    if rank == 1:
        assert done.stderr == ""
    else:
        says(done.stderr, "data.train", PLACE=place_of(run, "data.train"))


@pytest.mark.parametrize(
    ("words", "named"),
    [((), "--resume"), (("--resume",), None), (("--smoke",), "smoke.json"), (("--set", "run_dir=FILE"), "FILE")],
)
def test_a_dry_run_looks_whether_the_run_folder_is_free(
    run: Path, here: Path, words: tuple[str, ...], named: str | None, says: Says
) -> None:
    leave_run(run_config(run.parent / "run", run.parent / "tokens"), read_manifest(run.parent / "tokens"))
    (run.parent / "run.smoke").touch()
    done = launch("--cluster", here, "--dry-run", run, *(word.replace("FILE", str(run)) for word in words))
    assert done.returncode == (0 if named is None else 2), done.stderr
    if named is not None:
        says(done.stderr, named.replace("FILE", str(run)))
    checked = [sys.executable, "-m", "megaslm", "train", str(run), "--check", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    alone = subprocess.run(
        [word.replace("FILE", str(run)) for word in checked], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert alone.returncode == done.returncode


@pytest.mark.parametrize("option", [("--resume",), ("--set", "train.lr=1e-3"), ("--resume", "--set=seed=1")])
def test_options_of_the_verb_pass_through(run: Path, here: Path, option: tuple[str, ...]) -> None:
    done = launch("--cluster", here, "--dry-run", run, *option)
    assert done.returncode == 0, done.stderr
    assert shlex.split(done.stdout)[-len(option) :] == list(option)


@pytest.mark.parametrize("words", [("--smoke",), ("--smoke-steps", "9")])
def test_a_smoke_test_is_started_once(run: Path, words: tuple[str, ...]) -> None:
    done = launch("--cluster", "launcher/torchrun.yaml", "--dry-run", run, *words)
    assert done.returncode == 0, done.stderr
    started = ["MAX_RESTARTS=0", f"{ROOT}/launcher/torchrun.sh", "train", str(run), *words]
    assert shlex.split(done.stdout)[-len(started) :] == started


def test_a_dry_run_for_kubernetes_prints_manifests() -> None:
    done = launch("--cluster", "launcher/kubernetes.yaml", "--dry-run", RUN)
    assert done.returncode == 0, done.stderr
    assert [document["kind"] for document in yaml.safe_load_all(done.stdout)] == ["Service", "Job"]


def test_kubectl_reads_the_manifests_and_its_status_is_the_commands(tmp_path: Path, says: Says) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$@"\ncat >{tmp_path}/given\nexit 7\n', encoding="utf-8")
    kubectl.chmod(0o755)
    done = launch("--cluster", "launcher/kubernetes.yaml", RUN, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 7, done.stderr
    assert done.stdout == "create -f -\n"
    says(done.stderr, "kubectl logs", "job-name=megaslm-train")
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
def test_hostile_values_reach_every_rank_as_they_are(looking_around: Path, run: Path, here: Path, kind: str) -> None:
    value = 'a b\n$(touch pwned) `touch pwned` "it\'s" ; touch pwned ${local_rank} $$ \\'
    place = looking_around / 'my cluster\'s "file".yaml'
    torchrun = {"kind": "torchrun", "ranks_per_node": 2, "max_restarts": 0}
    settings = yaml.safe_load(here.read_text()) if kind == "local" else torchrun
    place.write_text(yaml.safe_dump({**settings, "environment": {"VALUE": value}}), encoding="utf-8")
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
