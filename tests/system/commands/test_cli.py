"""What a user sees of mistakes: one clear message, exit status 2, no traceback, no torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launched import ROOT
from tests.messages import Says
from tests.toy import leave_run, make_dataset, run_config, write_config


def megaslm(*arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "megaslm", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **environment}
    )


def test_help_names_the_verbs_without_importing_anything_heavy() -> None:
    probe = "import sys; from megaslm import cli; print([m for m in ('torch', 'pydantic', 'yaml') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout == "[]\n"
    done = megaslm("--help")
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in ("prepare", "score", "train", "export", "demo", "config"))
    # It cuts what is too long for 80 columns.
    assert "..." not in done.stdout.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("train", "nowhere.yaml"), "ConfigError: nowhere.yaml"),
        (("train", "configs/demo/slm.yaml", "--set", "slm.keep_ratio=1.4"), "slm.keep_ratio = 1.4"),
        (("train", "configs/demo/slm.yaml", "--set", "train.learning_rate=1"), "train.learning_rate"),
        (("prepare", "nowhere.yaml", "out"), "ConfigError: nowhere.yaml"),
        (("export", "nowhere", "out"), "  nowhere: "),
        (("checkpoint", "ls", "nowhere"), "CheckpointError: nowhere"),
        (("dynamics", "nowhere"), "CheckpointError: nowhere"),
        (("inspect", "nowhere"), "DataError: nowhere does not exist"),
        (("prepare", "nowhere.yaml", "out", "--finish", "--engine", "ray"), "ConfigError: --engine ray"),
        (("prepare", "nowhere.yaml", "out", "--share", "1/2", "--finish"), "ConfigError: --share and --finish"),
        (("train", "configs/demo/slm.yaml", "--set", "train.epochs=1"), "epochs = 1"),
        (("checkpoint", "ls", "docs", "tests"), "tests"),
        (("prepare", "nowhere.yaml", "out", "--part", "5/2"), "--share 5/2"),
    ],
)
def test_a_mistake_is_one_message(arguments: tuple[str, ...], named: str, says: Says) -> None:
    done = megaslm(*arguments)
    assert done.returncode == 2
    says(done.stderr, named)
    assert "Traceback" not in done.stderr + done.stdout


def test_explain_says_where_a_value_comes_from() -> None:
    done = megaslm("config", "explain", "configs/demo/slm.yaml", "--set", "train.lr=5e-4")
    assert done.returncode == 0
    assert "0.0005" in done.stdout
    assert "--set" in done.stdout
    assert "configs/demo/base.yaml" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("train", "nowhere.yaml"), "LaunchError: "),
        (("score", "--reference", "nowhere", "nowhere", "out"), "LaunchError: "),
        # One process, whatever its environment says.
        (("prepare", "nowhere.yaml", "out"), "ConfigError: nowhere.yaml"),
    ],
)
def test_what_another_job_has_left_in_the_environment_hides_no_message(arguments: tuple[str, ...], named: str) -> None:
    done = megaslm(*arguments, RANK="3", LOCAL_RANK="3")
    assert done.returncode == 2
    assert done.stderr.startswith(named)
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("prepare", "data/demo.yaml", "OUTPUT"),
        ("score", "--reference", "reference", "tokens", "OUTPUT"),
        ("mask", "scored", "OUTPUT"),
        ("attach", "tokens", "column", "--as", "weight", "--out", "OUTPUT"),
        ("train", "configs/demo/slm.yaml", "--set", "run_dir=OUTPUT"),
        ("export", "runs/slm", "OUTPUT"),
        ("init", "OUTPUT", "--model", "model", "--corpus", "web", "--curated", "good"),
    ],
)
def test_work_announces_itself_before_the_imports_that_take_seconds(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Without torch, numpy, transformers and inputs the command fails, but only after its first line."""
    probe = (
        "import sys; sys.modules.update(torch=None, numpy=None, transformers=None)\n"
        "from megaslm.cli import main; main()"
    )
    output = str(tmp_path / "output")
    command = [sys.executable, "-c", probe, *(argument.replace("OUTPUT", output) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode in (1, 2)
    assert done.stdout.startswith(f"{arguments[0]} · ")
    assert f"→ {output}" in done.stdout.splitlines()[0]


@pytest.mark.parametrize("verb", ["ls", "verify", "prune"])
def test_what_reads_checkpoints_announces_itself_beside_its_output(verb: str) -> None:
    done = without_torch("checkpoint", verb, "nowhere")
    assert done.stderr.startswith(f"checkpoint {verb} · nowhere\n")
    assert done.stdout == ""


def test_work_is_announced_once_for_all_ranks() -> None:
    command = [sys.executable, "-m", "megaslm", "score", "--reference", "nowhere", "nowhere", "out"]
    alone = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert alone.stdout.startswith("score · ")
    seat = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"}
    probe = "import sys; sys.modules.update(torch=None)\nfrom megaslm.cli import main; main()"
    second = subprocess.run(
        [sys.executable, "-c", probe, *command[3:]],
        capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **seat, **meeting},
    )  # fmt: skip
    assert second.returncode == 2
    assert second.stdout == second.stderr == ""


def test_a_resume_with_other_settings_is_refused_before_the_slow_imports(tmp_path: Path, says: Says) -> None:
    """Also by a dry run of a launcher, and only where the run has learned with the settings that it had."""
    manifest = make_dataset(tmp_path / "tokens", {("train", "a"): [12]})
    config = run_config(tmp_path / "run", tmp_path / "tokens", train={"lr": 1e-3})
    path, run = write_config(tmp_path / "run.yaml", config), leave_run(config, manifest)
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "cluster.yaml").write_text("kind: local\n", encoding="utf-8")
    asked = [str(path), "--resume", "--set", "train.lr=5e-4"]
    dry_run = ["launch", "--cluster", str(tmp_path / "cluster.yaml"), "--dry-run", *asked]

    assert without_torch("train", *asked, "--check").returncode == 0
    (run / "checkpoints" / "step-00000001" / "COMPLETE").touch()
    for arguments in (["train", *asked], ["train", *asked, "--check"], dry_run):
        refused = without_torch(*arguments)
        assert refused.returncode == 2
        says(refused.stderr, f"run_dir = {run}", "--allow-changed train.lr", "    train.lr: 0.001 → 0.0005")
    assert without_torch("train", *asked, "--check", "--allow-changed", "train.lr").returncode == 0
    make_dataset(tmp_path / "other", {("train", "a"): [12]}, seed=1)
    other = without_torch("train", str(path), "--resume", "--check", "--set", f"data.train={tmp_path / 'other'}")
    assert other.returncode == 2
    says(other.stderr, "data.train.tokens_sha256: ")


def test_text_of_no_known_format_is_refused_before_the_slow_imports(tmp_path: Path, says: Says) -> None:
    (tmp_path / "table.csv").write_text("a,b\n", encoding="utf-8")
    texts = [word for option in ("--corpus", "--curated") for word in (option, str(tmp_path / "table.csv"))]
    refused = without_torch("init", str(tmp_path / "project"), "--model", "nowhere", *texts)
    assert refused.returncode == 2
    says(refused.stderr, "nowhere", "table.csv", ".jsonl")


def without_torch(*arguments: str) -> "subprocess.CompletedProcess[str]":
    probe = "import sys; sys.modules.update(torch=None)\nfrom megaslm.cli import main; main()"
    return subprocess.run([sys.executable, "-c", probe, *arguments], capture_output=True, text=True, cwd=ROOT)
