"""The demo resumes, shows what is done, and removes nothing. A script stands in for the launcher of its runs."""

import json
import shutil
from pathlib import Path

import pytest

from megaslm.config.load import load
from megaslm.config.schema import RunConfig
from megaslm.config.source import dump
from megaslm.demo import StageFailed, run_demo
from megaslm.errors import ConfigError
from tests.launched import ROOT
from tests.messages import Says

CONFIGS = Path("configs/demo")
FOLDER = Path("runs/demo")
DONE = ("prepare", "base", "reference", "export reference", "score", "clm")
OUTPUTS = ("tokens", "base", "reference", "reference-model", "scored", "clm", "slm-model")
# Notes its arguments; then it trains, or fails where a file says so.
LAUNCHER = """#!/bin/bash
echo "$@" >> launched.txt
[[ ! -e broken ]] || exit 3
mkdir -p runs/demo/slm
cp runs/demo/clm/metrics.jsonl runs/demo/clm/config.yaml runs/demo/slm
"""


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A demo that was interrupted in its SLM run, by an earlier build that recorded nothing of it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs/demo", CONFIGS)
    shutil.copytree(ROOT / "data", "data")
    Path("launcher").mkdir()
    Path("launcher/local.sh").write_text(LAUNCHER)
    Path("launcher/local.sh").chmod(0o755)
    validation = {"kind": "validation", "step": 9, "tokens": 1000, "name": "target", "domain": "docs", "loss": 2.0,
                  "perplexity": 7.4, "targets": 10}  # fmt: skip
    for name in OUTPUTS:
        (FOLDER / name).mkdir(parents=True)
        (FOLDER / name / "metrics.jsonl").write_text(json.dumps(validation) + "\n")
    (FOLDER / "clm" / "config.yaml").write_text(dump(load(RunConfig, CONFIGS / "clm.yaml").value))
    record = {"stages": {name: {"seconds": 10.0, "done": True, "settings_sha256": None} for name in DONE}}
    (FOLDER / ".demo").write_text(json.dumps(record))
    return FOLDER


def launched() -> list[str]:
    return Path("launched.txt").read_text().splitlines() if Path("launched.txt").exists() else []


def test_only_what_is_missing_is_run_and_a_finished_demo_is_shown(
    demo: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = run_demo(CONFIGS)
    assert launched() == ["train configs/demo/slm.yaml --resume"]
    capfd.readouterr()
    assert run_demo(CONFIGS) == first
    assert (demo / "summary.json").read_text() == json.dumps(first, indent=1) + "\n"
    assert launched() == ["train configs/demo/slm.yaml --resume"]
    shown = capfd.readouterr().out
    assert shown.count("done before") == 9
    assert "perplexity" in shown
    assert f"{demo / 'report.html'} (" in shown
    assert {path.name for path in demo.iterdir()} == {*OUTPUTS, "slm", ".demo", "summary.json", "report.html"}


def test_a_stage_that_failed_is_run_again_and_its_time_adds_up(demo: Path, says: Says) -> None:
    Path("broken").touch()
    with pytest.raises(StageFailed) as failed:
        run_demo(CONFIGS)
    says(failed, "slm", "3")
    seconds = json.loads((demo / ".demo").read_text())["stages"]["slm"]["seconds"]
    Path("broken").unlink()
    run_demo(CONFIGS)
    assert len(launched()) == 2
    assert json.loads((demo / ".demo").read_text())["stages"]["slm"]["seconds"] > seconds


def test_other_settings_are_refused_and_nothing_is_removed(demo: Path, says: Says) -> None:
    run_demo(CONFIGS)
    before = sorted(demo.rglob("*"))
    with (CONFIGS / "slm.yaml").open("a") as file:
        file.write("seed: 7\n")
    with pytest.raises(ConfigError) as refused:
        run_demo(CONFIGS)
    says(refused, "slm", demo)
    assert sorted(demo.rglob("*")) == before


def test_a_demo_of_an_earlier_build_is_shown(demo: Path) -> None:
    made = run_demo(CONFIGS)
    (demo / ".demo").write_bytes(b"")
    assert run_demo(CONFIGS) == made
    assert len(launched()) == 1


def test_a_folder_of_something_else_is_left_alone(demo: Path, says: Says) -> None:
    (demo / ".demo").unlink()
    with pytest.raises(ConfigError) as refused:
        run_demo(CONFIGS)
    says(refused, demo)
    assert not launched()
