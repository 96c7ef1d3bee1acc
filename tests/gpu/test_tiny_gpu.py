"""The tiny configuration of the same code on one GPU in bf16: train, score, resume, export."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from megaslm.dataset.manifest import read_manifest
from tests.gpu.runs import ROWS_PER_STEP, STEPS, config_file, losses, make_tokens, scratch_shape
from tests.launched import run_megaslm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; this machine has none"),
]


def test_kept_graphs_and_a_second_pass_learn_the_same(tmp_path: Path) -> None:
    make_tokens(tmp_path)
    found = {}
    for way in ("kept_graphs", "second_pass"):
        config = config_file(
            "slm",
            tmp_path,
            way,
            model={"from_scratch": scratch_shape()},
            data={"train": str(tmp_path / "tokens")},
            train={"micro_batch_rows": ROWS_PER_STEP // 2, "deterministic": True},
            slm={"reference": None, "criterion": "loss", "exact_by": way},
        )
        run_megaslm("train", config)
        found[way] = losses(tmp_path / way)
    assert len(found["second_pass"]) == STEPS
    assert found["kept_graphs"] == found["second_pass"]


def test_the_whole_way_on_one_gpu(tmp_path: Path) -> None:
    make_tokens(tmp_path)
    run_megaslm("train", config_file("clm", tmp_path, "clm", model={"from_scratch": scratch_shape()}))
    run_megaslm("export", tmp_path / "clm", tmp_path / "reference")
    run_megaslm("score", "--reference", tmp_path / "reference", tmp_path / "tokens", tmp_path / "scored")
    reference = read_manifest(tmp_path / "scored").reference
    assert reference is not None
    assert reference.precision == "bf16"

    start = {"from_scratch": None, "from_run": str(tmp_path / "clm")}
    slm = config_file("slm", tmp_path, "slm", model=start, train={"deterministic": True})
    run_megaslm("train", slm)
    undisturbed = losses(tmp_path / "slm")
    shutil.rmtree(tmp_path / "slm" / "checkpoints" / "step-00000008")
    run_megaslm("train", slm, "--resume")
    assert losses(tmp_path / "slm") == undisturbed

    run_megaslm("export", tmp_path / "slm", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert model.dtype == torch.bfloat16
