"""A training run is measured on tasks: the same numbers on any number of ranks, in all logs and on the terminal."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import yaml

from megaslm.config.schema import RunConfig
from megaslm.observe.records import TaskLossRecord, TaskRecord, read_step
from tests.chain import Chain
from tests.events import points_in
from tests.forked_cli import run_megaslm
from tests.messages import Says
from tests.toy import write_config
from tests.training import with_steps

R = TypeVar("R", TaskRecord, TaskLossRecord)
ITEMS, MEASURED = 7, 5
# On two ranks one has an item less, and the last batch of the other is its own.
BATCH_ROWS = 2


@dataclass(frozen=True)
class MeasuredRun:
    """A run, and what it printed."""

    folder: Path
    said: str

    @property
    def last_step(self) -> int:
        return int(json.loads((self.folder / "metrics.jsonl").read_text().splitlines()[-1])["step"])

    def records(self, kind: type[R]) -> list[R]:
        """What was measured before the first step and at the end."""
        steps = (read_step(self.folder / "metrics.jsonl", step) for step in (0, self.last_step))
        return [record for step in steps for record in step if isinstance(record, kind)]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of their data, of `words.yaml`, and of `choices.yaml`, whose losses can be measured too."""
    folder = tmp_path_factory.mktemp("tasks")
    lines = [json.dumps({"q": f"w{number}", "a": str(number)}) for number in range(ITEMS)]
    (folder / "a.jsonl").write_text("\n".join(lines))
    words = {"files": ["a.jsonl"], "format": "jsonl", "question": "{q}", "answer": "{a}", "prompt": "{question}"}
    words |= {"stop": ["\n"], "grader": "rho"}
    losses = {"solution": "w{a} w9", "choices": ["w1{a} w4", "w{a}"], "answer": "B {a}", "grader": "letter"}
    (folder / "words.yaml").write_text(yaml.safe_dump(words))
    (folder / "choices.yaml").write_text(yaml.safe_dump({**words, **losses}))
    return folder


def task_of(tasks: Path, name: str, **changes: object) -> dict[str, object]:
    settings = {"task": str(tasks / f"{name}.yaml"), "data": str(tasks), "max_items": MEASURED, "max_new_tokens": 3}
    return {**settings, **changes}


def config_of(chain: Chain, run: Path, **tasks: dict[str, object]) -> RunConfig:
    settings = with_steps(chain.slm_config(run), 2).model_dump()
    settings["validation"] |= {"tasks": tasks, "batch_rows": BATCH_ROWS}
    return RunConfig.model_validate(settings)


@pytest.fixture(scope="module")
def runs(chain: Chain, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> list[MeasuredRun]:
    """The same run on one rank and on two; it measures answers of one task and losses of the other."""
    folder, runs = tmp_path_factory.mktemp("runs"), []
    measured = {"words": task_of(tasks, "words"), "choices": task_of(tasks, "choices", measure="losses")}
    for ranks in (1, 2):
        run = folder / f"on {ranks}"
        config = write_config(folder / f"{ranks}.yaml", config_of(chain, run, **measured))
        runs.append(MeasuredRun(run, run_megaslm("train", config, world_size=ranks)))
    return runs


def test_tasks_are_answered_before_the_first_step_and_at_the_end(runs: list[MeasuredRun]) -> None:
    assert [run.said.count("task words") for run in runs] == [2, 2]
    one, two = (run.records(TaskRecord) for run in runs)
    assert one == two
    assert [(record.name, record.items, record.empty) for record in one] == [("words", MEASURED, 0)] * 2


def test_losses_on_tasks_are_those_of_evaluate_on_any_number_of_ranks(
    runs: list[MeasuredRun], tasks: Path, tmp_path: Path
) -> None:
    for run in runs:
        assert run.said.count("bits per byte") == 2
        tags = points_in(run.folder)
        for group in ("loss_task", "bits_per_byte", "choice_accuracy", "choice_accuracy_per_byte"):
            assert [step for step, _ in tags[f"{group}/choices"]] == [0, run.last_step]
    (before, after), on_two = (run.records(TaskLossRecord) for run in runs)
    for one, two in zip((before, after), on_two, strict=True):
        assert _numbers(one) == pytest.approx(_numbers(two), rel=1e-5)
    assert before.nats_per_token != after.nats_per_token
    # The model of the last step, exported.
    run_megaslm("export", runs[0].folder, tmp_path / "model")
    asked = ("--tasks", tasks / "choices.yaml", "--data", tasks, "--measure", "losses", "--limit", MEASURED)
    run_megaslm("evaluate", tmp_path / "model", *map(str, asked), "-o", tmp_path / "out")
    measured = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["choices"]
    assert after.nats_per_token == pytest.approx(measured["nats_per_token"]["mean"], rel=1e-5)
    assert after.bits_per_byte == pytest.approx(measured["bits_per_byte"], rel=1e-5)
    assert after.choice_accuracy == pytest.approx(measured["choice_accuracy"]["mean"])
    assert after.choice_accuracy_per_byte == pytest.approx(measured["choice_accuracy_per_byte"]["mean"])


def _numbers(record: TaskLossRecord) -> dict[str, float]:
    return {name: value for name, value in asdict(record).items() if name != "name"}


@pytest.mark.parametrize(
    "changes", [{"data": "absent"}, {"task": "absent"}, {"max_new_tokens": 1000}, {"measure": "losses"}], ids=str
)
def test_a_task_that_cannot_be_answered_is_refused(
    changes: dict[str, object], chain: Chain, tasks: Path, tmp_path: Path, says: Says
) -> None:
    config = config_of(chain, tmp_path / "run", words=task_of(tasks, "words", **changes))
    said = run_megaslm("train", write_config(tmp_path / "run.yaml", config), expect_status=2)
    says(next(line for line in said.splitlines() if "validation.tasks" in line))
