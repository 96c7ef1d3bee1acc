"""Every benchmark runs, says what it asks, and writes what others read."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megaslm.errors import SandboxError
from megaslm.sandbox.sandbox import Sandbox
from tests.launched import ROOT

TOY = ROOT / "benchmarks" / "tool_use_toy.py"
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))
QUICK = ("head", "loader")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(script, id=script.stem, marks=[] if script.stem in QUICK else pytest.mark.slow)
        for script in SCRIPTS
        if script != TOY
    ],
)
def test_a_benchmark_prints_its_question_and_writes_its_numbers(script: Path, tmp_path: Path) -> None:
    numbers_of(script, tmp_path)


@pytest.mark.slow
def test_the_suite_for_a_gpu_measures_every_case(tmp_path: Path) -> None:
    """It prints the error of a case and continues: a GPU is dear, and the other cases are worth having."""
    rows = numbers_of(ROOT / "benchmarks" / "gpu_suite.py", tmp_path)["rows"]
    assert [row["case"] for row in rows if "not measured" in " ".join(map(str, row.values()))] == []
    assert len({row["case"] for row in rows}) >= 10


@pytest.mark.slow
def test_a_model_that_is_fine_tuned_on_programs_writes_programs_that_run(tmp_path: Path) -> None:
    try:
        with Sandbox(workers=1):
            pass
    except SandboxError as error:
        pytest.skip(str(error))
    before, after = numbers_of(TOY, tmp_path)["rows"]
    assert before["answers with a program that ran"] + 0.5 < after["answers with a program that ran"]
    assert after["programs that failed"] < after["programs"] / 2


def numbers_of(script: Path, tmp_path: Path) -> dict[str, Any]:
    """What a quick run of the script writes."""
    numbers = tmp_path / "numbers.json"
    ran = subprocess.run(
        [sys.executable, str(script), "--quick", "--json", str(numbers)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(numbers.read_text())
    assert set(found) == {"question", "commit", "machine", "rows", "bars"}
    assert found["question"].split()[0] in ran.stdout
    assert found["rows"]
    assert found["bars"]
    for bar in found["bars"]:
        assert set(bar) == {"name", "value", "limit", "better", "holds"}
        lower, higher = bar["value"] <= bar["limit"], bar["value"] >= bar["limit"]
        assert bar["holds"] == (lower if bar["better"] == "lower" else higher)
    return found


def test_there_are_benchmarks() -> None:
    assert SCRIPTS
