"""What a plan asks for, and what it says where something is missing."""

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from rich.console import Console

from megaslm.config.devices import GPU_KINDS
from megaslm.config.load import load
from megaslm.config.schema import ModelSection, RunConfig
from megaslm.errors import ConfigError, ModelError
from megaslm.model.shapes import shape_in, shape_of
from megaslm.model.traced_memory import parameter_counts
from megaslm.plan_cli import token_count
from megaslm.planning.machine import machine_of
from megaslm.planning.plan import Plan, Request, make_plan
from megaslm.planning.view import show_plan
from tests.messages import Says, line_with
from tests.model_folders import make_model
from tests.toy import SEQ_LEN, make_dataset, run_config, write_config

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def shown(plan: Plan) -> str:
    """What is printed of a plan."""
    printed = io.StringIO()
    show_plan(Console(width=200, file=printed), plan)
    return printed.getvalue()


def test_an_unknown_gpu_is_refused(says: Says) -> None:
    with pytest.raises(ConfigError) as refused:
        machine_of("h1000", 8)
    says(refused.value, "--gpu h1000", "h100-80g")


@pytest.mark.parametrize(
    "model",
    [
        ModelSection(from_pretrained="models/unheard-of"),
        ModelSection(from_pretrained="models/unheard-of", hub={"repo": "some/model"}),
        ModelSection(from_run="runs/none"),
    ],
    ids=["folder", "hub", "run"],
)
def test_a_shape_that_is_nowhere_is_asked_for(model: ModelSection, says: Says) -> None:
    with pytest.raises(ModelError) as refused:
        shape_of(model, None)
    says(refused.value, "--model")


def test_published_shapes_are_those_of_configs() -> None:
    for name, file in (("tinyllama-1.1b", "tinyllama-1b"), ("mistral-7b", "mistral-7b")):
        published = shape_in(Path("models") / name)
        own = shape_of(load(RunConfig, CONFIGS / "shapes" / f"{file}.yaml").value.model, None)
        assert published is not None
        assert published.config.to_dict() == own.config.to_dict()


@pytest.mark.parametrize("text", ["500_000_000", "0.5e9", "5e8"])
def test_tokens_are_read_as_the_settings_read_them(text: str) -> None:
    assert token_count(text) == 500_000_000
    assert (
        load(RunConfig, CONFIGS / "demo" / "base.yaml", [f"train.total_tokens={text}"]).value.train.total_tokens == 5e8
    )


@pytest.mark.parametrize("text", ["500M", "0", "1.5", "inf", "nan"])
def test_what_is_no_number_of_tokens_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        token_count(text)


def test_a_shape_is_read_without_weights(tmp_path: Path) -> None:
    lm = make_model(tmp_path / "model")
    for weights in (tmp_path / "model").glob("*.safetensors"):
        weights.unlink()
    for named in (tmp_path / "model", tmp_path / "model" / "config.json"):
        shape = shape_of(ModelSection(from_pretrained="models/unheard-of"), named)
        assert parameter_counts(shape.config)[0].total == sum(parameter.numel() for parameter in lm.parameters())


def test_a_length_in_epochs_is_that_of_the_dataset(tmp_path: Path) -> None:
    make_dataset(tmp_path / "tokens", {("train", "a"): [40]})
    config = run_config(tmp_path / "run", tmp_path / "tokens", train={"total_tokens": None, "epochs": "2.5"})
    file = write_config(tmp_path / "run.yaml", config)
    request = Request(machine_of("h100-80g", 2), mfu=0.3)
    plan = make_plan(file, (), request)
    # An epoch has five steps of eight rows.
    assert (plan.batches.total_steps, plan.tokens) == (12, 12 * 8 * SEQ_LEN)
    elsewhere = make_plan(file, ["data.train=nowhere"], request)
    assert (elsewhere.tokens, elsewhere.training, elsewhere.disk) == (None, None, None)


def test_rows_that_are_read_again_are_scored_and_stored_once(tmp_path: Path) -> None:
    make_dataset(tmp_path / "tokens", {("train", "a"): [40]})
    config = run_config(tmp_path / "run", tmp_path / "tokens", train={"objective": "slm"})
    file = write_config(tmp_path / "run.yaml", config)
    once, again = (
        make_plan(file, [f"train.total_tokens={rows * SEQ_LEN}"], Request(machine_of("h100-80g", 2), mfu=0.3))
        for rows in (40, 96)
    )
    assert (once.tokens, again.tokens) == (40 * SEQ_LEN, 96 * SEQ_LEN)
    assert once.scoring is not None
    assert once.scoring.tokens == 40 * SEQ_LEN
    assert once.scoring == again.scoring
    assert once.disk is not None
    assert again.disk is not None
    assert once.disk.shards == again.disk.shards


def test_a_peak_that_is_not_known_gives_no_hours(tmp_path: Path) -> None:
    file = write_config(tmp_path / "run.yaml", run_config(tmp_path / "run", tmp_path / "tokens"))
    plan = make_plan(file, ["model.precision=fp32"], Request(machine_of("h100-80g", 2), mfu=0.3))
    assert plan.training is None
    assert "--gpu" not in shown(plan)
    assert "model.precision" in shown(plan)


@pytest.mark.parametrize("device", ["cpu", "NVIDIA Some GPU"])
def test_without_a_kind_of_gpu_the_plan_says_whose_machine_it_is_for_and_which_kinds_there_are(
    device: str, tmp_path: Path
) -> None:
    file = write_config(tmp_path / "run.yaml", run_config(tmp_path / "run", tmp_path / "tokens"))
    here = replace(machine_of("h100-80g", 2), device=device, peak_tflops=None)
    told = shown(make_plan(file, [], Request(here, mfu=0.3)))
    assert f"this machine: {device}" in told
    assert set(GPU_KINDS) <= set(re.findall(r"[\w-]+", told))
    assert "this machine" not in shown(make_plan(file, [], Request(machine_of("h100-80g", 2), mfu=0.3)))


@pytest.mark.parametrize(
    ("scoring_hours", "second_pass", "expected"),
    [
        (0.25, False, (0.75, 0.9375)),
        (0.25, True, (0.5, 0.6875)),
        (1.5, False, (-0.5, 0.625)),
        (9.0, False, (-8.0, -1.25)),
    ],
)
def test_what_a_selective_run_must_save(
    scoring_hours: float, second_pass: bool, expected: tuple[float, float], says: Says
) -> None:
    path, overrides = CONFIGS / "rho-math-1b" / "slm.yaml", ["slm.mode=exact", "slm.exact_by=second_pass"]
    plan = make_plan(path, overrides if second_pass else [], Request(machine_of("h100-80g", 32), mfu=0.3))
    assert plan.training is not None
    assert plan.scoring is not None
    assert plan.scoring.work is not None
    work = replace(plan.scoring.work, hours=scoring_hours * plan.training.hours)
    plan = replace(plan, scoring=replace(plan.scoring, work=work))
    assert [plan.break_even(runs) for runs in (1, 4)] == pytest.approx(list(expected))
    says(line_with(shown(plan), "pays").strip("│ "))


def test_a_run_on_all_tokens_has_nothing_to_save() -> None:
    plan = make_plan(CONFIGS / "rho-math-1b" / "clm.yaml", [], Request(machine_of("h100-80g", 32), mfu=0.3))
    assert plan.break_even(1) is None
