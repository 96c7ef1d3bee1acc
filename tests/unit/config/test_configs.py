"""The configurations that are shipped."""

from pathlib import Path

import pytest

from megaslm.config.load import load
from megaslm.config.plan import parameter_count, plan_batches
from megaslm.config.schema import RunConfig

ROOT = Path(__file__).resolve().parents[3]
# configs/eval has tasks, no runs.
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if "eval" not in path.parts)


def shipped(name: str) -> RunConfig:
    return load(RunConfig, ROOT / "configs" / name).value


@pytest.mark.parametrize(
    "folder", ["demo", "tiny-gpu", "rho-math-1b", "rho-math-7b", "rho-general-1b", "weak-to-strong-7b"]
)
def test_slm_and_its_baseline_differ_in_the_method_alone(folder: str) -> None:
    clm, slm = (shipped(f"{folder}/{name}.yaml").model_dump() for name in ("clm", "slm"))
    for stream in (*clm["data"]["streams"].values(), *slm["data"]["streams"].values()):
        # The same rows, with and without losses.
        del stream["dataset"], stream["reference"]
    differing = {
        f"{section}.{key}"
        for section in ("model", "data", "train", "validation", "zero", "checkpoint")
        for key in clm[section]
        if clm[section][key] != slm[section][key]
    }
    assert "train.objective" in differing
    assert differing <= {"train.objective", "data.train"}


def test_every_run_has_a_folder_of_its_own() -> None:
    run_dirs = [load(RunConfig, path).value.run_dir for path in CONFIGS]
    assert len(set(run_dirs)) == len(run_dirs)


@pytest.mark.parametrize(
    ("name", "parameters"), [("shapes/tinyllama-1b.yaml", 1_100_048_384), ("shapes/mistral-7b.yaml", 7_241_732_096)]
)
def test_shapes_have_the_published_size(name: str, parameters: int) -> None:
    shape = shipped(name).model.from_scratch
    assert shape is not None
    assert parameter_count(shape).total == parameters


def test_plans_of_the_paper_are_whole() -> None:
    plan = plan_batches(shipped("rho-math-1b/slm.yaml"), 32)
    assert (plan.rows_per_rank, plan.micro_steps, plan.total_steps, plan.canonical_nodes) == (16, 2, 14_305, 64)
