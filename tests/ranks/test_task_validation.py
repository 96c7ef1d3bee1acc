"""A training run is measured on tasks: the same numbers on any number of ranks, in all logs and on the terminal."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from megaslm.config.schema import RunConfig
from megaslm.observe.records import TaskLossRecord, TaskRecord, read_step
from tests.chain import Chain
from tests.events import points_in
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


def config_of(chain: Chain, run: Path, task: dict[str, Any], **validation: Any) -> RunConfig:
    settings = chain.slm_config(run).model_dump()
    settings["validation"] |= {"tasks": {"words": task}, **validation}
    return RunConfig.model_validate(settings)


def answered(run: Path, step: int) -> list[TaskRecord]:
    return [record for record in read_step(run / "metrics.jsonl", step) if isinstance(record, TaskRecord)]


def losses_at(run: Path, step: int) -> list[TaskLossRecord]:
    return [record for record in read_step(run / "metrics.jsonl", step) if isinstance(record, TaskLossRecord)]


def _numbers(record: TaskLossRecord) -> dict[str, float]:
    return {name: value for name, value in asdict(record).items() if name != "name"}


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


def test_losses_on_tasks_are_those_of_evaluate_on_any_number_of_ranks(
    chain: Chain, task: dict[str, Any], tmp_path: Path
) -> None:
    with_losses = yaml.safe_load((tmp_path / "words.yaml").read_text())
    with_losses |= {"solution": "w{a} w9", "choices": ["w1{a} w4", "w{a}"], "answer": "B {a}", "grader": "letter"}
    (tmp_path / "words.yaml").write_text(yaml.safe_dump(with_losses))
    found = []
    for ranks in (1, 2):
        run = tmp_path / f"on {ranks}"
        # On two ranks one has an item less, and the last batch of the other is its own.
        config = config_of(chain, run, {**task, "measure": "losses"}, batch_rows=1)
        said = run_megaslm("train", write_config(tmp_path / f"{ranks}.yaml", config), world_size=ranks)
        assert said.count("bits per byte") == 2
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        found.append([*losses_at(run, 0), *losses_at(run, last)])
        tags = points_in(run / "tensorboard")
        for group in ("loss_task", "bits_per_byte", "choice_accuracy", "choice_accuracy_per_byte"):
            assert [step for step, _ in tags[f"{group}/words"]] == [0, last]
    for one, two in zip(*found, strict=True):
        assert _numbers(one) == pytest.approx(_numbers(two), rel=1e-5)
    assert found[0][0].nats_per_token != found[0][1].nats_per_token
    # The model of the last step, exported.
    run_megaslm("export", tmp_path / "on 1", tmp_path / "model")
    asked = ("--tasks", tmp_path / "words.yaml", "--data", tmp_path, "--measure", "losses", "--limit", "5")
    run_megaslm("evaluate", tmp_path / "model", *asked, "-o", tmp_path / "out")
    measured = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["words"]
    assert found[0][1].nats_per_token == pytest.approx(measured["nats_per_token"]["mean"], rel=1e-5)
    assert found[0][1].bits_per_byte == pytest.approx(measured["bits_per_byte"], rel=1e-5)
    assert found[0][1].choice_accuracy == pytest.approx(measured["choice_accuracy"]["mean"])
    assert found[0][1].choice_accuracy_per_byte == pytest.approx(measured["choice_accuracy_per_byte"]["mean"])


@pytest.mark.parametrize(
    "changes", [{"data": "absent"}, {"task": "absent"}, {"max_new_tokens": 1000}, {"measure": "losses"}], ids=str
)
def test_a_task_that_cannot_be_answered_is_refused(
    changes: dict[str, Any], chain: Chain, task: dict[str, Any], tmp_path: Path, says: Says
) -> None:
    config = write_config(tmp_path / "run.yaml", config_of(chain, tmp_path / "run", {**task, **changes}))
    said = run_megaslm("train", config, expect_status=2)
    says(next(line for line in said.splitlines() if "validation.tasks" in line))
