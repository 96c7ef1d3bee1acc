"""What is otherwise tested on CPUs, on one GPU: checkpoints, a run that is told to stop, bad steps, a dry run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megaslm.errors import Stopped
from tests.gpu.runs import SEQ_LEN, TOKENS_PER_STEP, config_file, losses, make_tokens, scratch_shape
from tests.injection import faults
from tests.launched import run_megaslm
from tests.messages import lines_with

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; this machine has none"),
]

GIB = 1 << 30
HALF_WAY_TOKENS = 4 * TOKENS_PER_STEP
MANY_ROWS = 8192


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    make_tokens(folder)
    return folder


def clm(folder: Path, name: str, **sections: dict[str, Any]) -> Path:
    settings: dict[str, dict[str, Any]] = {"model": {"from_scratch": scratch_shape()}, "data": {"loader_workers": 0}}
    return config_file("clm", folder, name, **{**settings, **sections})


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> list[float]:
    run_megaslm("train", clm(folder, "undisturbed"))
    return losses(folder / "undisturbed")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"stage": 3}, {"stage": 2}),
        ({"stage": 1}, {"stage": 3, "offload_optimizer": True}),
        ({"stage": 2, "offload_optimizer": True}, {"stage": 3}),
    ],
)
def test_a_run_resumes_under_another_stage(
    folder: Path, undisturbed: list[float], before: dict[str, Any], after: dict[str, Any]
) -> None:
    name = "-".join(str(value) for value in (*before.values(), "to", *after.values()))
    run_megaslm("train", clm(folder, name, zero=before, train={"total_tokens": HALF_WAY_TOKENS}))
    run_megaslm("train", clm(folder, name, zero=after), "--resume", "--allow-changed", "train.total_tokens")
    # Stages sum gradients in buckets of their own, which bf16 rounds otherwise.
    assert losses(folder / name) == pytest.approx(undisturbed, abs=3e-3)


def test_a_run_that_is_told_to_stop_loses_no_step(
    folder: Path, undisturbed: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = clm(folder, "told")
    monkeypatch.setenv(faults.ENVIRONMENT, "term@rank0:step3")
    run_megaslm("train", config, expect_status=Stopped.exit_status)
    monkeypatch.delenv(faults.ENVIRONMENT)
    made = losses(folder / "told")
    assert len(made) in (3, 4)
    assert made == undisturbed[: len(made)]
    run_megaslm("train", config, "--resume")
    assert losses(folder / "told") == undisturbed


def test_a_smoke_test_measures_the_gpu(folder: Path, undisturbed: list[float]) -> None:
    run_megaslm("train", clm(folder, "tried"), "--smoke-steps", "3")
    assert losses(folder / "tried.smoke") == undisturbed[:3]
    result = json.loads((folder / "tried.smoke" / "smoke.json").read_text())
    assert result["passed"] is True
    assert 0 < result["peak_memory"]["peak_bytes"] < result["peak_memory"]["gpu_bytes"]
    assert result["peak_memory"]["gpu_bytes"] > 4 * GIB


def test_a_bad_step_is_skipped(folder: Path, undisturbed: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.ENVIRONMENT, "nan@rank0:step3")
    said = run_megaslm("train", clm(folder, "bad"))
    assert "step 3" in said
    records = [json.loads(line) for line in (folder / "bad" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if record["kind"] == "skipped"] == [3]
    assert losses(folder / "bad")[:2] == undisturbed[:2]
    assert len(losses(folder / "bad")) == len(undisturbed) - 1


def test_a_run_after_a_dry_run_is_the_run_itself(folder: Path, undisturbed: list[float]) -> None:
    said = run_megaslm("train", clm(folder, "checked", guard={"dry_run": True}))
    assert lines_with(said, "dry run", "GiB of GPU memory")
    assert losses(folder / "checked") == undisturbed


def test_a_dry_run_names_what_does_not_fit(folder: Path) -> None:
    """This process leaves the run less memory than the activations of one micro-batch take."""
    make_tokens(folder / "many", train_rows=MANY_ROWS)
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(free - 4 * GIB, dtype=torch.uint8, device="cuda")
    batch_tokens = MANY_ROWS * SEQ_LEN
    batch = {"micro_batch_rows": MANY_ROWS, "global_batch_tokens": batch_tokens, "total_tokens": batch_tokens}
    config = clm(
        folder / "many", "large", train=batch, guard={"dry_run": True}, checkpoint={"every_tokens": batch_tokens}
    )
    said = run_megaslm("train", config, expect_status=2)
    del taken
    torch.cuda.empty_cache()
    assert lines_with(said, "guard.dry_run: ", "rank 0: ", "train.micro_batch_rows")
