"""Whole runs with weights of targets: resumed, on one and two ranks; and with weights of 1."""

import json
from itertools import product
from pathlib import Path

import pytest

from megaslm.config.schema import RunConfig
from tests.columns import write_column
from tests.forked_cli import run_megaslm
from tests.toy import make_dataset, run_config
from tests.training import are_equal, changed, last_weights, run_training, with_steps

STEPS_BEFORE = 3
WEIGHTS: dict[str, dict[str, object]] = {
    "entropy": {"by": "entropy"},
    "probability": {"by": "probability"},
    "sigmoid": {"by": "sigmoid", "temperature": 0.5, "center_nats": 3.0},
    "signed": {"by": "signed", "negative": 0.2, "bound_nats": 6.0},
}
RANKS_AND_STAGES = {"entropy": (2, 3), "probability": (1, 0), "sigmoid": (1, 3), "signed": (2, 2)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weighted") / "tokens"
    make_dataset(folder, {("train", "a"): [20, 15], ("train", "b"): [30]})
    return folder


def six_steps(run: Path, dataset: Path, **slm: object) -> RunConfig:
    """Six steps of 8 rows in micro-batches of 2."""
    train = {"objective": "slm", "schedule": "constant", "micro_batch_rows": 2}
    return run_config(run, dataset, train=train, slm={"criterion": "loss", **slm})


def steps_of(run: Path) -> list[dict[str, object]]:
    """What the run recorded of each step, but for its speed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name != "tokens_per_second"}
        for line in lines
        if line["kind"] == "step"
    ]


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_resumed_run_ends_as_an_uninterrupted_one(dataset: Path, tmp_path: Path, name: str) -> None:
    world_size, stage = RANKS_AND_STAGES[name]
    whole, parted = (
        changed(six_steps(tmp_path / folder, dataset, weight=WEIGHTS[name]), zero={"stage": stage})
        for folder in ("whole", "parted")
    )
    run_training(whole, world_size=world_size)
    run_training(with_steps(parted, STEPS_BEFORE), world_size=world_size)
    run_training(parted, world_size=world_size, resume=True)
    steps = steps_of(tmp_path / "whole")
    assert len(steps) == 2 * STEPS_BEFORE
    assert steps_of(tmp_path / "parted") == steps
    assert are_equal(last_weights(tmp_path / "whole"), last_weights(tmp_path / "parted"))
    assert all(isinstance(step["mean_weight"], float) for step in steps)
    assert all(0 < float(str(step["mean_weight"])) < 1 for step in steps)


@pytest.mark.parametrize(("world_size", "by"), list(product((1, 2), ("probability", "entropy"))))
def test_weights_of_1_on_every_target_are_causal_language_modeling(
    dataset: Path, tmp_path: Path, world_size: int, by: str
) -> None:
    weighted = six_steps(tmp_path / "weighted", dataset, keep_ratio="1", weight={"by": by, "power": 0})
    plain = changed(six_steps(tmp_path / "clm", dataset), train={"objective": "clm"})
    for config in (weighted, plain):
        run_training(config, world_size=world_size)
    assert are_equal(last_weights(tmp_path / "weighted"), last_weights(tmp_path / "clm"))
    assert [step.pop("mean_weight") for step in steps_of(tmp_path / "weighted")] == [1.0] * 2 * STEPS_BEFORE
    assert [step["mean_weight"] for step in steps_of(tmp_path / "clm")] == [None] * 2 * STEPS_BEFORE
    without = [
        [{name: value for name, value in step.items() if name != "mean_weight"} for step in steps_of(tmp_path / run)]
        for run in ("weighted", "clm")
    ]
    assert without[0] == without[1]


@pytest.mark.parametrize(("world_size", "value"), [(1, 1.0), (2, 1.0), (2, 0.25)])
def test_a_run_by_an_attached_column(dataset: Path, tmp_path: Path, world_size: int, value: float) -> None:
    columns = {"row": [0, 0, 17, 40], "position": [0, 5, 3, 7], "value": [value] * 4}
    file = write_column(tmp_path / "column.parquet", dataset, columns)
    run_megaslm("attach", dataset, file, "--as", "weight", "--out", tmp_path / "attached", "--default", str(value))
    by_column = six_steps(tmp_path / "column", tmp_path / "attached", keep_ratio="1", weight={"by": "column"})
    plain = changed(six_steps(tmp_path / "clm", dataset), train={"objective": "clm"})
    for config in (by_column, plain):
        run_training(config, world_size=world_size)
    assert {step["mean_weight"] for step in steps_of(tmp_path / "column")} == {value}
    assert are_equal(last_weights(tmp_path / "column"), last_weights(tmp_path / "clm")) == (value == 1.0)
