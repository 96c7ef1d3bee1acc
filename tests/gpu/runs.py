"""Runs of the tiny configuration on one GPU in bf16, as programs of their own."""

import json
from pathlib import Path
from typing import Any

from megaslm.config.load import load
from megaslm.config.schema import RunConfig
from megaslm.config.section import Split
from megaslm.config.source import dump
from tests.launched import ROOT
from tests.toy import make_dataset

SEQ_LEN = 64
ROWS_PER_STEP = 8
TOKENS_PER_STEP = ROWS_PER_STEP * SEQ_LEN
STEPS = 8
STEPS_BETWEEN_CHECKPOINTS = 4
SHAPE = {"vocab_size": 64, "max_position_embeddings": SEQ_LEN}


def make_tokens(folder: Path, train_rows: int = 100) -> None:
    """The dataset of all runs in a folder."""
    rows: dict[tuple[Split, str], list[int]] = {("train", "a"): [train_rows], ("heldout", "a"): [8]}
    make_dataset(folder / "tokens", rows, seq_len=SEQ_LEN)


def scratch_shape() -> dict[str, Any]:
    """The model of configs/tiny-gpu, with the dataset's vocabulary."""
    scratch = load(RunConfig, ROOT / "configs" / "tiny-gpu" / "clm.yaml").value.model.from_scratch
    assert scratch is not None
    return {**scratch.model_dump(), **SHAPE}


def config_file(objective: str, folder: Path, name: str, **sections: dict[str, Any]) -> Path:
    """configs/tiny-gpu/OBJECTIVE.yaml on the dataset of a folder, of a few steps; `sections` change settings."""
    tiny = load(RunConfig, ROOT / "configs" / "tiny-gpu" / f"{objective}.yaml").value.model_dump()
    settings: dict[str, dict[str, Any]] = {
        "data": {
            "train": str(folder / ("scored" if objective == "slm" else "tokens")),
            "seq_len": SEQ_LEN,
            "domains": None,
        },
        "train": {
            "objective": objective,
            "total_tokens": STEPS * TOKENS_PER_STEP,
            "global_batch_tokens": TOKENS_PER_STEP,
            "micro_batch_rows": ROWS_PER_STEP,
            "warmup_tokens": 0,
            "schedule": "constant",
        },
        "slm": {"reference": str(folder / "reference") if objective == "slm" else None},
        "validation": {"sets": {"held": {"dataset": str(folder / "tokens")}}},
        "checkpoint": {"every_tokens": STEPS_BETWEEN_CHECKPOINTS * TOKENS_PER_STEP},
    }
    tiny["run_dir"] = str(folder / name)
    for changes in (settings, sections):
        for section, values in changes.items():
            tiny[section] |= values
    path = folder / f"{name}.yaml"
    path.write_text(dump(RunConfig.model_validate(tiny)))
    return path


def losses(run: Path) -> list[float]:
    """The loss of each step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]
