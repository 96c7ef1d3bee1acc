"""`megaslm doctor` as a user calls it: on this machine, on a run that can start, and on runs that cannot."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megaslm.doctor.host import open_files
from tests.forked_cli import call_megaslm
from tests.forks import fork, statuses_of
from tests.launched import ROOT
from tests.messages import Says
from tests.s3 import Bucket
from tests.toy import make_dataset, run_config, write_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    make_dataset(tmp_path / "tokens", {("train", "a"): [20], ("heldout", "a"): [4]})
    return write_config(tmp_path / "run.yaml", run_config(tmp_path / "run", tmp_path / "tokens"))


def statuses(report: Path) -> dict[str, str]:
    """The status of each topic, the worst of several."""
    found: dict[str, str] = {}
    for check in read(report)["checks"]:
        found[check["topic"]] = max(
            found.get(check["topic"], "ok"), check["status"], key=["ok", "warning", "problem"].index
        )
    return found


def read(report: Path) -> dict[str, Any]:
    written: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return written


def test_a_machine_is_looked_at_and_nothing_of_its_environment_is_told(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "megaslm", "doctor", "--json", report],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "AWS_SECRET_ACCESS_KEY": "xyzzy", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("doctor · ")
    found = read(report)
    assert found["problems"] == 0
    topics = list(dict.fromkeys(check["topic"] for check in found["checks"]))
    assert topics[:3] == ["megaslm", "libraries", "extras"]
    assert topics[-5:] == ["resources", "attention", "compiler", "arithmetic", "sandbox"]
    assert all(f" · {topic} " in done.stdout for topic in topics)
    assert "xyzzy" not in done.stdout + done.stderr + report.read_text(encoding="utf-8")


def test_it_answers_before_the_imports_that_take_seconds() -> None:
    probe = "import sys; sys.modules.update(torch=None)\nfrom megaslm.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", probe, "doctor"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    assert lines[0].startswith("doctor · ")
    broken = [line for line in lines if line.startswith("problem")]
    assert len(broken) == 1
    assert "torch" in broken[0]


def test_two_steps_of_a_run_are_made_and_removed(config: Path, tmp_path: Path) -> None:
    report, before = tmp_path / "report.json", {entry.name for entry in tmp_path.iterdir()}
    done = call_megaslm("doctor", config, "--steps", "--ranks", "1", "--json", report)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {entry.name for entry in tmp_path.iterdir()} == before | {"report.json"}
    (made,) = [check for check in read(report)["checks"] if check["topic"] == "dry run"]
    assert made["status"] == "ok"
    assert made["facts"]["result"]["steps"] == 2
    assert {"config", "inputs", "run folder", "choices", "model", "plan"} <= statuses(report).keys()
    (shown,) = [check for check in read(report)["checks"] if check["topic"] == "config"]
    assert shown["facts"]["train.lr"] == "0.01"


def test_a_run_without_its_dataset_is_a_problem_and_makes_no_step(config: Path, tmp_path: Path, says: Says) -> None:
    report, missing = tmp_path / "report.json", tmp_path / "nowhere"
    done = call_megaslm("doctor", config, "--steps", "--set", f"data.train={missing}", "--json", report)
    assert done.returncode == 2
    told = [line for line in done.stdout.splitlines() if line.startswith("problem")]
    says("\n".join(told), f"data.train (--set): {missing}")
    assert [topic for topic, status in statuses(report).items() if status == "problem"] == ["inputs"]
    assert statuses(report)["dry run"] == "warning"
    assert not Path(f"{tmp_path / 'run'}.doctor.smoke").exists()
    assert any(str(missing) in task for task in read(report)["to_do"])


def test_steps_that_fail_are_told_with_their_last_lines(config: Path, tmp_path: Path) -> None:
    """The folder of the steps holds something else, which is kept."""
    kept = tmp_path / "run.doctor.smoke" / "mine.txt"
    kept.parent.mkdir()
    kept.write_text("mine", encoding="utf-8")
    done = call_megaslm("doctor", config, "--steps", "--ranks", "1")
    assert done.returncode == 2
    assert "InputError: " in done.stdout
    assert str(kept.parent) in done.stdout
    assert kept.read_text(encoding="utf-8") == "mine"


def test_a_file_that_is_no_configuration_is_a_problem(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    (tmp_path / "run.yaml").write_text("run_dir: 3\n", encoding="utf-8")
    done = call_megaslm("doctor", tmp_path / "run.yaml", "--json", report)
    assert done.returncode == 2
    assert [topic for topic, status in statuses(report).items() if status == "problem"] == ["config"]
    assert "inputs" not in statuses(report)


def test_a_dataset_on_object_storage_is_asked_for(config: Path, s3: Bucket, tmp_path: Path) -> None:
    pytest.importorskip("s3fs")
    report, tokens = tmp_path / "report.json", tmp_path / "tokens"
    s3.put("tokens/manifest.json", (tokens / "manifest.json").read_bytes())
    there, missing = s3.url("tokens"), s3.url("nowhere")
    assert call_megaslm("doctor", config, "--set", f"data.train={there}", "--json", report).returncode == 0
    (store,) = [check for check in read(report)["checks"] if check["topic"] == "store"]
    assert there in store["found"]
    done = call_megaslm("doctor", config, "--set", f"data.train={missing}", "--json", report)
    assert done.returncode == 2
    assert f"data.train (--set): {missing}" in done.stdout


@pytest.mark.parametrize("option", [("--steps",), ("--set", "train.lr=1")])
def test_what_only_a_run_has_needs_one(option: tuple[str, ...], says: Says) -> None:
    done = call_megaslm("doctor", *option)
    assert done.returncode == 2
    says(done.stderr, option[0])


def test_few_open_files_are_told(tmp_path: Path, says: Says) -> None:
    def look() -> None:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, most))
        (check,) = open_files()
        assert check.status == "warning"
        (tmp_path / "told").write_text(check.lines(), encoding="utf-8")
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, most))
        (check,) = open_files()
        assert check.status == "ok"

    assert statuses_of([fork(look)]) == [0]
    says((tmp_path / "told").read_text(encoding="utf-8"), "512")
