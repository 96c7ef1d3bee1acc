"""The suite's table says what a model cost: with scoring and references, and what of it is not known."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from megaslm.config.task import Suite
from megaslm.evaluation.records import Estimate, ModelCost, Results, TaskResult
from megaslm.evaluation.results import model_cost
from megaslm.evaluation.view import show_results
from megaslm.tasks.task_files import load_suite
from tests.evaluations import description
from tests.launched import ROOT

TRAINING = {"tokens_seen": 15_000_000_000, "tokens_selected": 9_000_000_000, "seconds": 100.0, "ranks": 2}
SCORING = {"seconds": 50.0, "gpu_hours": 4.0}
REFERENCE = {"seconds": 20.0, "gpu_hours": 2.0}


def written(folder: Path, gpu_hours: float = 0.0, **before: Any) -> Path:
    content = {"training": {**TRAINING, "gpu_hours": gpu_hours}, "shard_checks": {}, "domains": {}, **before}
    (folder / "cost.json").write_text(json.dumps(content))
    return folder


def shown(cost: ModelCost | None, suite: Suite) -> list[str]:
    """The lines of the suite's table."""
    accuracy = Estimate(mean=0.25, standard_error=0.1, low=0.1, high=0.4)
    tasks = {
        name: TaskResult(items=9, samples=1, grader="rho", accuracy=accuracy, task_sha256="", data_sha256="")
        for name in suite.tasks
    }
    printed = StringIO()
    console = Console(file=printed, width=240)
    show_results(
        console, Results(description=description(model="models/slm"), tasks=tasks, cost=cost, seconds=1), suite
    )
    return printed.getvalue().split("\n")


def test_scoring_and_the_training_of_references_are_counted(tmp_path: Path) -> None:
    stages = {"scoring": SCORING, "reference_training": REFERENCE}
    cost = model_cost(written(tmp_path, 112.0, **stages, datasets={"data.train": stages}))
    assert cost == ModelCost(
        tokens_seen=15_000_000_000, tokens_selected=9_000_000_000, seconds=170, gpu_hours=118, is_complete=True
    )


@pytest.mark.parametrize("known", [{}, {"scoring": SCORING}])
def test_a_reference_of_unknown_cost_makes_the_total_incomplete(known: dict[str, Any], tmp_path: Path) -> None:
    nothing = {"seconds": 0, "gpu_hours": 0}
    folder = written(tmp_path, 112.0, scoring=nothing, reference_training=nothing, datasets={"data.train": known})
    cost = model_cost(folder)
    assert cost is not None
    assert not cost.is_complete


def test_a_run_without_a_reference_has_its_own_cost(tmp_path: Path) -> None:
    cost = model_cost(written(tmp_path))
    assert cost is not None
    assert (cost.seconds, cost.gpu_hours, cost.is_complete) == (100, 0, True)


@pytest.mark.parametrize("content", ["", "{}", '{"training": 3}', '{"training": {"seconds": 1}}'])
def test_a_cost_of_another_program_is_unknown(content: str, tmp_path: Path) -> None:
    assert model_cost(tmp_path) is None
    (tmp_path / "cost.json").write_text(content)
    assert model_cost(tmp_path) is None


def test_the_table_has_tokens_and_cost_beside_the_published_ones() -> None:
    suite = load_suite(ROOT / "configs" / "eval" / "rho-math.yaml")
    cost = ModelCost(
        tokens_seen=15_000_000_000, tokens_selected=9_000_000_000, seconds=9, gpu_hours=118, is_complete=True
    )
    lines = shown(cost, suite)
    heads = next(line for line in lines if "tokens seen" in line)
    assert heads.split()[-6:] == ["average", "tokens", "seen", "selected", "total", "cost"]
    rows = {
        line.split(",")[0].strip(): line.split()[-4:] for line in lines if "published" in line or "measured" in line
    }
    assert rows == {
        "TinyLlama-1.1B CLM": ["21.6", "15.0B", "15.0B", "?"],
        "Rho-1-1B": ["38.1", "15.0B", "9.0B", "?"],
        "Mistral-7B CLM": ["55.8", "15.0B", "15.0B", "?"],
        "Rho-1-7B": ["66.2", "15.0B", "10.5B", "?"],
        "DeepSeekMath-7B": ["68.4", "500.0B", "500.0B", "?"],
        "models/slm": ["15.0B", "9.0B", "118", "GPU-hours"],
    }


@pytest.mark.parametrize(
    ("cost", "end"),
    [
        (None, "25.0 ? ? ?"),
        (
            ModelCost(tokens_seen=512, tokens_selected=300, seconds=75, gpu_hours=0, is_complete=True),
            "512 300 1 min 15 s on CPUs",
        ),
        (
            ModelCost(tokens_seen=5_120_000, tokens_selected=3_000, seconds=75, gpu_hours=1.25, is_complete=False),
            "5.1M 3.0k more than 1.25 GPU-hours",
        ),
    ],
)
def test_what_is_not_known_is_marked(cost: ModelCost | None, end: str) -> None:
    line = next(line for line in shown(cost, Suite(tasks=("gsm8k",))) if "measured" in line)
    assert " ".join(line.split()).endswith(end)
