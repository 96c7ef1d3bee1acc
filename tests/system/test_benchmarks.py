"""Every benchmark runs, says what it asks, and writes what others read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launched import ROOT

SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_benchmark_prints_its_question_and_writes_its_numbers(script: Path, tmp_path: Path) -> None:
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
    found = json.loads(numbers.read_text())
    assert set(found) == {"question", "commit", "machine", "rows", "bars"}
    assert found["question"].split()[0] in ran.stdout
    assert found["rows"]
    assert found["bars"]
    for bar in found["bars"]:
        assert set(bar) == {"name", "value", "limit", "better", "holds"}
        lower, higher = bar["value"] <= bar["limit"], bar["value"] >= bar["limit"]
        assert bar["holds"] == (lower if bar["better"] == "lower" else higher)


def test_there_are_benchmarks() -> None:
    assert SCRIPTS
