"""The tiny configuration of the same code on one GPU in bf16: train, score, resume, export."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from megaslm.config.dump import dump
from megaslm.config.load import load
from megaslm.config.schema import RunConfig
from megaslm.data.dataset.manifest import read_manifest
from tests.ranks import ROOT, run_megaslm
from tests.toy import make_dataset

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; this machine has none"),
]

SEQ_LEN = 64
SHAPE = {"vocab_size": 64, "max_position_embeddings": SEQ_LEN}
BATCH = {"total_tokens": 8 * 8 * SEQ_LEN, "global_batch_tokens": 8 * SEQ_LEN, "micro_batch_rows": 8, "warmup_tokens": 0}


def config(objective: str, folder: Path, name: str, **model: object) -> Path:
    """configs/tiny-gpu/OBJECTIVE.yaml on a small dataset, with the demo's length."""
    tiny = load(RunConfig, ROOT / "configs" / "tiny-gpu" / f"{objective}.yaml").value.model_dump()
    tiny |= {"run_dir": str(folder / name), "validation": {"sets": {"held": {"dataset": str(folder / "tokens")}}}}
    tiny["data"] |= {"train": str(folder / ("scored" if objective == "slm" else "tokens")), "seq_len": SEQ_LEN}
    tiny["data"] |= {"domains": None}
    tiny["train"] |= {**BATCH, "objective": objective, "schedule": "constant"}
    tiny["checkpoint"] |= {"every_tokens": 4 * 8 * SEQ_LEN}
    tiny["slm"] |= {"reference": str(folder / "reference") if objective == "slm" else None}
    tiny["model"] |= model
    path = folder / f"{name}.yaml"
    path.write_text(dump(RunConfig.model_validate(tiny)))
    return path


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]


def test_the_whole_way_on_one_gpu(tmp_path: Path) -> None:
    make_dataset(tmp_path / "tokens", {("train", "a"): [60, 40], ("heldout", "a"): [8]}, seq_len=SEQ_LEN)
    scratch = load(RunConfig, ROOT / "configs" / "tiny-gpu" / "clm.yaml").value.model.from_scratch
    assert scratch is not None
    shape = {**scratch.model_dump(), **SHAPE}
    run_megaslm("train", config("clm", tmp_path, "clm", from_scratch=shape))
    run_megaslm("export", tmp_path / "clm", tmp_path / "reference")
    run_megaslm("score", "--reference", tmp_path / "reference", tmp_path / "tokens", tmp_path / "scored")
    reference = read_manifest(tmp_path / "scored").reference
    assert reference is not None
    assert reference.precision == "bf16"

    start = {"from_scratch": None, "from_run": str(tmp_path / "clm")}
    slm = config("slm", tmp_path, "slm", **start)
    run_megaslm("train", slm)
    undisturbed = losses(tmp_path / "slm")
    shutil.rmtree(tmp_path / "slm" / "checkpoints" / "step-00000008")
    run_megaslm("train", slm, "--resume")
    assert losses(tmp_path / "slm") == undisturbed

    run_megaslm("export", tmp_path / "slm", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert model.dtype == torch.bfloat16
