"""A training run answers tasks: the same accuracy on any number of ranks, in metrics.jsonl and on the terminal."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from megaslm.config.schema import RunConfig
from megaslm.observe.records import TaskRecord, read_step
from tests.chain import Chain
from tests.forked_cli import run_megaslm
from tests.messages import Says
from tests.toy import write_config

ITEMS = 7


@pytest.fixture
def task(tmp_path: Path) -> dict[str, Any]:
    lines = [json.dumps({"q": f"w{number}", "a": str(number)}) for number in range(ITEMS)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    settings = {"files": ["a.jsonl"], "format": "jsonl", "question": "{q}", "answer": "{a}", "prompt": "{question}"}
    (tmp_path / "words.yaml").write_text(yaml.safe_dump({**settings, "stop": ["\n"], "grader": "rho"}))
    return {"task": str(tmp_path / "words.yaml"), "data": str(tmp_path), "max_items": 5, "max_new_tokens": 3}


def config_of(chain: Chain, run: Path, task: dict[str, Any]) -> RunConfig:
    settings = chain.slm_config(run).model_dump()
    settings["validation"]["tasks"] = {"words": task}
    return RunConfig.model_validate(settings)


def answered(run: Path, step: int) -> list[TaskRecord]:
    return [record for record in read_step(run / "metrics.jsonl", step) if isinstance(record, TaskRecord)]


def test_tasks_are_answered_before_the_first_step_and_at_the_end(
    chain: Chain, task: dict[str, Any], tmp_path: Path
) -> None:
    found = []
    for ranks in (1, 2):
        run = tmp_path / f"on {ranks}"
        config = config_of(chain, run, task)
        said = run_megaslm("train", write_config(tmp_path / f"{ranks}.yaml", config), world_size=ranks)
        assert said.count("task words") == 2
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        found.append([*answered(run, 0), *answered(run, last)])
    assert found[0] == found[1]
    assert [(record.name, record.items, record.empty) for record in found[0]] == [("words", 5, 0)] * 2


@pytest.mark.parametrize("changes", [{"data": "absent"}, {"task": "absent"}, {"max_new_tokens": 1000}], ids=str)
def test_a_task_that_cannot_be_answered_is_refused(
    changes: dict[str, Any], chain: Chain, task: dict[str, Any], tmp_path: Path, says: Says
) -> None:
    config = write_config(tmp_path / "run.yaml", config_of(chain, tmp_path / "run", {**task, **changes}))
    said = run_megaslm("train", config, expect_status=2)
    says(next(line for line in said.splitlines() if "validation.tasks" in line))
