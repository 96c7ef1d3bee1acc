"""The suite of token selection: failures, kills, budgets, and its quick form from texts to tables."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.selection_suite.noise import WHOLE
from benchmarks.selection_suite.pairs import TARGET
from benchmarks.selection_suite.plan import Stage, with_needs
from benchmarks.selection_suite.runner import Outcome, Runner
from megaslm.errors import ConfigError
from tests.launched import ROOT
from tests.messages import Says

WORKER = """
import sys, time
from pathlib import Path
folder, name = Path(sys.argv[1]), sys.argv[2]
with (folder / "calls").open("a") as calls:
    calls.write(name + "\\n")
if (folder / f"fail-{name}").exists():
    sys.exit(3)
while (folder / f"hold-{name}").exists():
    time.sleep(0.05)
(folder / name).touch()
"""


def stage(folder: Path, name: str, *needs: Stage, verb: str = "prepare") -> Stage:
    return Stage(name, verb, (str(folder), name), folder / name, needs)  # type: ignore[arg-type]


def carry_out(folder: Path, *stages: Stage, budget_seconds: float | None = None) -> tuple[Outcome, list[str], str]:
    """The outcome, the stages that were begun in this attempt, and what was said."""
    (folder / "calls").write_text("")
    said: list[str] = []
    command = (sys.executable, "-c", WORKER)
    runner = Runner(folder / "suite", 2, budget_seconds, say=said.append, command=command)
    outcome = runner.carry_out(with_needs(stages))
    return outcome, sorted((folder / "calls").read_text().split()), "\n".join(said)


def names(stages: list[Stage]) -> list[str]:
    return sorted(stage.name for stage in stages)


def test_a_stage_that_fails_is_named_and_tried_again_while_the_others_go_on(tmp_path: Path, says: Says) -> None:
    (tmp_path / "fail-b").touch()
    first = stage(tmp_path, "a")
    stages = (stage(tmp_path, "c", stage(tmp_path, "b", first)), stage(tmp_path, "d", first))
    outcome, begun, said = carry_out(tmp_path, *stages)
    assert begun == ["a", "b", "d"]
    assert (names(outcome.finished), names(outcome.failed), names(outcome.left)) == (["a", "d"], ["b"], ["c"])
    (failure,) = [line for line in said.splitlines() if "[" not in line]
    says(failure, "b", "3", "b.log")
    (tmp_path / "fail-b").unlink()
    outcome, begun, _ = carry_out(tmp_path, *stages)
    assert begun == ["b", "c"]
    assert (names(outcome.finished), outcome.failed, outcome.left) == (["a", "b", "c", "d"], [], [])
    assert carry_out(tmp_path, *stages)[1] == []


def test_a_finished_stage_with_other_settings_is_refused(tmp_path: Path, says: Says) -> None:
    first = stage(tmp_path, "a")
    carry_out(tmp_path, first)
    with pytest.raises(ConfigError) as raised:
        carry_out(tmp_path, replace(first, content="other"))
    says(raised.value, "a", "suite")


def test_with_a_budget_no_stage_begins_that_is_expected_to_end_later(tmp_path: Path) -> None:
    long, short = stage(tmp_path, "a", verb="score"), stage(tmp_path, "b", verb="prepare")
    carry_out(tmp_path, long, short)
    record = tmp_path / "suite" / "stages.json"
    done = json.loads(record.read_text())
    done["stages"]["a"]["seconds"], done["stages"]["b"]["seconds"] = 1e6, 1e-6
    record.write_text(json.dumps(done))
    more = (long, stage(tmp_path, "c", verb="score"), short, stage(tmp_path, "d", verb="prepare"))
    outcome, begun, _ = carry_out(tmp_path, *more, budget_seconds=1000.0)
    assert begun == ["d"]
    assert names(outcome.left) == ["c"]
    assert carry_out(tmp_path, *more, budget_seconds=0.0)[1] == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_runner_that_is_ended_leaves_no_command_behind_and_is_resumed(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "hold-b").touch()
    stages = (stage(tmp_path, "a"), stage(tmp_path, "b"))
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from tests.system.test_selection_suite import carry_out, stage\n"
        "folder = Path(sys.argv[1])\n"
        "carry_out(folder, stage(folder, 'a'), stage(folder, 'b'))\n"
    )
    runner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    record = tmp_path / "suite" / "stages.json"
    until(lambda: record.is_file() and '"a"' in record.read_text())
    until(lambda: "b" in (tmp_path / "calls").read_text().split())
    runner.send_signal(number)
    runner.wait()
    until(lambda: not commands_in(tmp_path))
    (tmp_path / "hold-b").unlink()
    outcome, begun, _ = carry_out(tmp_path, *stages)
    assert begun == ["b"]
    assert names(outcome.finished) == ["a", "b"]


def until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        time.sleep(0.05)


def commands_in(folder: Path) -> list[str]:
    """The processes of the worker that were started for this folder."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if f"{folder} b" in line]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quick_suite_leads_from_texts_to_tables_and_figures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.selection_suite", "--quick", "--folder", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "MEGASLM_SHARED_DATA"}

    def run(*more: str) -> list[str]:
        ran = subprocess.run([*command, *more], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return [line for line in ran.stdout.splitlines() if line.startswith("[")]

    cores = str(min(2, os.cpu_count() or 1))
    assert len(run("--cores", cores)) == 38
    found = json.loads((tmp_path / "results.json").read_text())
    assert {(arm["pair"], arm["arm"]) for arm in found["arms"]} == {
        (pair, arm) for pair in ("documentation", "noise") for arm in ("clm", "slm-0.2", "slm-0.6", "random-0.6")
    }
    for arm in found["arms"]:
        assert arm["seeds"] == [1, 2]
        assert 0 < arm["losses"]["target"]["low"] < arm["losses"]["target"]["high"]
        if arm["pair"] == "noise":
            assert TARGET in arm["kept"]
            assert len(set(arm["kept"]) & set(WHOLE)) >= 3
    assert len(list(tmp_path.glob("*.svg"))) == 10
    assert (tmp_path / "results.md").read_text().count("\n## ") == 2
    assert run() == []
