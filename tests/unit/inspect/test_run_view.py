"""`megaslm inspect` of a run folder."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from megaslm.config.source import dump
from megaslm.inspect.run_facts import run_facts
from megaslm.inspect.run_view import show_run
from tests.messages import Says
from tests.toy import run_config

STEP = {"kind": "step", "loss": 2.5, "all_loss": None, "selected_ratio": 1.0, "learning_rate": 0.01,
        "gradient_norm": 1.0, "tokens_per_second": 1000.0}  # fmt: skip
VALIDATION = {"kind": "validation", "name": "held", "domain": "a", "perplexity": 7.0, "targets": 10}


def shown(run: Path) -> str:
    console = Console(file=StringIO(), width=100)
    show_run(console, run_facts(run))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # A relative path: the length of an absolute one decides where lines are folded.
    monkeypatch.chdir(tmp_path)
    run = Path("run")
    run.mkdir()
    (run / "config.yaml").write_text(dump(run_config(run, Path("tokens"))))
    return run


def test_a_run_tells_its_last_step_and_the_newest_loss_of_each_set(run: Path, says: Says) -> None:
    lines = [
        {**VALIDATION, "step": 0, "tokens": 0, "loss": 4.0},
        {**STEP, "step": 1, "tokens": 128},
        {**STEP, "step": 3, "tokens": 384, "loss": 2.25},
        {**VALIDATION, "step": 3, "tokens": 384, "loss": 2.0},
    ]
    unfinished = '{"kind": "step", "step": 4, "tok'
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + unfinished)
    (run / "cost.json").write_text(json.dumps({"training": {"seconds": 90.0, "ranks": 2, "gpu_hours": 0.05}}))
    for step in (2, 3):
        folder = run / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "weights-00000.safetensors").write_bytes(bytes(1000))
    (folder / "COMPLETE").write_bytes(b"")
    facts = run_facts(run)
    assert facts.last_step is not None
    assert (facts.last_step.step, [record.loss for record in facts.validations]) == (3, [2.0])
    assert [checkpoint.folder for checkpoint in facts.checkpoints] == [str(folder)]
    says(shown(run), "clm", "3 of 6", "50%", "2.2500", "2.0000", "1 min 30 s on 2 ranks", "step-00000003")


def test_a_run_that_has_just_begun(run: Path, says: Says) -> None:
    says(shown(run), "none reported yet", "none yet")
