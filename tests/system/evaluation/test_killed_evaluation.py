"""An evaluation that is killed at any moment answers again only what was under way; its files are equal."""

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from megaslm import cli
from megaslm.evaluation import work
from megaslm.evaluation.answering import answer
from tests.forked_cli import run_megaslm
from tests.forks import fork, fork_ranks, statuses_of, wait_until
from tests.generating import make_folder

ITEMS, BATCH_ROWS = 16, 2
KILLS = 2


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """All but the output of an evaluation whose batches take long enough for a kill within one."""
    folder = tmp_path_factory.mktemp("evaluation")
    lines = [json.dumps({"q": f"{'so ' * (number % 5)}{number} + 2?", "a": str(number + 2)}) for number in range(ITEMS)]
    (folder / "sums.jsonl").write_text("\n".join(lines))
    task = {"files": ["sums.jsonl"], "format": "jsonl", "question": "{q}", "answer": "{a}", "grader": "letter"}
    (folder / "sums.yaml").write_text(yaml.safe_dump({**task, "prompt": "{question}", "max_new_tokens": 64}))
    model = make_folder(folder / "model")
    sampled = ("--samples", "2", "--temperature", "1", "--batch-rows", str(BATCH_ROWS))
    return ["evaluate", str(model), "--tasks", str(folder / "sums.yaml"), "--data", str(folder), *sampled]


@pytest.fixture(scope="module")
def whole(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole") / "output"
    run_megaslm(*command, "-o", output)
    return output


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_killed_it_answers_only_what_was_under_way_again(
    ranks: int, command: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = tmp_path / "begun"

    def written_down(task: Any, items: Sequence[tuple[Any, int]], *positional: Any, **named: Any) -> Any:
        with begun.open("a") as file:
            file.writelines(f"{item.number} {sample}\n" for item, sample in items)
        return answer(task, items, *positional, **named)

    monkeypatch.setattr(work, "answer", written_down)
    output, done = tmp_path / "killed", dict[str, int]()
    for kill in range(KILLS):
        processes = _start([*command, "-o", str(output)], ranks, tmp_path / f"said {kill}")
        wait_until(partial(_has_finished, output, len(done) + 3))
        os.killpg(processes[0], signal.SIGKILL)
        assert statuses_of(processes) == [-signal.SIGKILL] * ranks
        assert not (output / "results.json").exists()
        assert done.items() <= _finished(output).items(), "a finished batch was done again"
        done = _finished(output)
    run_megaslm(*command, "-o", output, world_size=ranks)
    times = Counter(begun.read_text().split("\n")[:-1])
    assert len(times) == 2 * ITEMS
    assert sum(times.values()) - len(times) <= KILLS * ranks * BATCH_ROWS
    assert (output / "sums.jsonl").read_bytes() == (whole / "sums.jsonl").read_bytes()
    assert _results(output) == _results(whole)
    assert {path.name for path in output.iterdir()} == {"results.json", "sums.jsonl"}


def _start(arguments: list[str], ranks: int, said: Path) -> list[int]:
    def run() -> None:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        sys.argv = ["megaslm", *arguments]
        cli.main()

    return [fork(run)] if ranks == 1 else fork_ranks(ranks, run)


def _finished(output: Path) -> dict[str, int]:
    """The batches that are done, with the time at which each was."""
    return {path.name: path.stat().st_mtime_ns for path in output.glob(".evaluate/task-*.json")}


def _has_finished(output: Path, batches: int) -> bool:
    return len(_finished(output)) >= batches


def _results(output: Path) -> dict[str, Any]:
    """All of results.json but its time."""
    found: dict[str, Any] = json.loads((output / "results.json").read_text())
    del found["seconds"]
    return found
