"""Every benchmark runs, says what it asks, and writes what others read."""

import json
import subprocess
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from megaslm.errors import SandboxError
from megaslm.sandbox.sandbox import Sandbox
from tests.launched import ROOT

TOY = ROOT / "benchmarks" / "tool_use_toy.py"
SUITE = ROOT / "benchmarks" / "gpu_suite.py"
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))
QUICK = ("head", "loader")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(script, id=script.stem, marks=[] if script.stem in QUICK else pytest.mark.slow)
        for script in SCRIPTS
        if script not in (TOY, SUITE)
    ],
)
def test_a_benchmark_prints_its_question_and_writes_its_numbers(script: Path, tmp_path: Path) -> None:
    numbers_of(script, tmp_path)


@pytest.mark.slow
def test_the_suite_for_a_gpu_measures_every_case(tmp_path: Path) -> None:
    """A case that fails is printed and leaves no row: a GPU is dear, and the other cases are worth having."""
    found = numbers_of(SUITE, tmp_path)
    rows = [row["case"] for row in found["rows"]]
    trained = ("first step", "CLM", "SLM exact", "the Trainer")
    assert sorted(rows) == sorted(
        ["product of 256 × 256", "head, cache", "head, bracket", "score 7B", "score 1.1B"]
        + [f"train {model}, {name}" for model in ("7B", "1.1B") for name in trained]
        + [f"train 1.1B, CLM, {name}" for name in ("deterministic True", "recompute selective", "recompute full")]
    )
    assert len({bar["name"] for bar in found["bars"]}) == 8


@pytest.mark.parametrize("end", ["raise SystemExit(1)", "import time; time.sleep(60)"], ids=["fails", "takes too long"])
def test_a_case_for_a_gpu_keeps_the_rows_that_it_had(end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SUITE.parent)
    suite = import_module(SUITE.stem)
    row = {"case": "a", "tokens_per_second": 1.0, "seconds": 1.0, "mfu": 0.5, "mfu_documents": 0.5, "peak_gib": 0.0}
    out = tmp_path / "rows.json"
    program = f"from pathlib import Path; Path({str(out)!r}).write_text({json.dumps([row])!r}); {end}"
    found = suite.rows_of("case", [sys.executable, "-c", program], out, 5.0)
    assert [asdict(each) for each in found] == [row]


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
