"""The configurations that are shipped."""

from pathlib import Path

import pytest

from megaslm.config.load import load
from megaslm.config.plan import parameter_count, plan_batches
from megaslm.config.schema import RunConfig

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def shipped(name: str) -> RunConfig:
    return load(RunConfig, ROOT / "configs" / name).value


@pytest.mark.parametrize(
    ("folder", "lr", "seq_len", "total_tokens", "keep_ratio", "reference_lr", "reference_tokens"),
    [
        ("rho-math-1b", 8e-5, 2048, 15e9, "0.6", 5e-5, 1.5e9),
        ("rho-math-7b", 2e-5, 4096, 15e9, "0.7", 1e-5, 1.5e9),
        ("rho-general-1b", 1e-4, 2048, 80e9, "0.6", 5e-5, 5.7e9),
    ],
)
def test_the_papers_runs_have_the_papers_settings(
    folder: str,
    lr: float,
    seq_len: int,
    total_tokens: float,
    keep_ratio: str,
    reference_lr: float,
    reference_tokens: float,
) -> None:
    slm, reference = shipped(f"{folder}/slm.yaml"), shipped(f"{folder}/reference.yaml")
    assert (slm.train.objective, slm.train.lr, slm.train.total_tokens) == ("slm", lr, total_tokens)
    assert (slm.data.seq_len, str(slm.slm.keep_ratio)) == (seq_len, keep_ratio)
    assert slm.train.global_batch_tokens == 2**20
    assert (reference.train.objective, reference.train.lr) == ("clm", reference_lr)
    assert (reference.train.total_tokens, reference.train.schedule) == (reference_tokens, "cosine")
    assert reference.data.seq_len == seq_len


@pytest.mark.parametrize("folder", ["demo", "tiny-gpu", "rho-math-1b", "rho-math-7b", "rho-general-1b"])
def test_slm_and_its_baseline_differ_in_the_method_alone(folder: str) -> None:
    clm, slm = (shipped(f"{folder}/{name}.yaml").model_dump() for name in ("clm", "slm"))
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
