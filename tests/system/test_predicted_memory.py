"""The demo's run on two ranks of a CPU takes the memory that was predicted."""

import json
from pathlib import Path

import pytest

from tests.launched import run_megaslm
from tests.shipped import CONFIGS
from tests.toy import make_dataset


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "recompute"), [(32, "none"), (8, "none"), (32, "full")])
def test_the_demo_takes_what_was_predicted(rows: int, recompute: str, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    parts = {("train", "source"): [700], ("heldout", "source"): [64], ("heldout", "docs"): [64]}
    make_dataset(tokens, parts, seq_len=128, vocab_size=4096)
    settings = {
        "run_dir": tmp_path / "run",
        "data.train": tokens,
        "validation.sets.target.dataset": tokens,
        "validation.sets.corpus.dataset": tokens,
        "train.total_tokens": 10 * 8192,
        "train.micro_batch_rows": rows,
        "model.recompute": recompute,
    }
    options = [option for name, value in settings.items() for option in ("--set", f"{name}={value}")]
    said = run_megaslm("train", CONFIGS / "demo" / "base.yaml", *options, world_size=2)
    found = json.loads((tmp_path / "run" / "memory.json").read_text(encoding="utf-8"))
    assert found["measured_bytes"] == pytest.approx(found["predicted_bytes"], rel=0.1)
    assert f"({found['measured_bytes'] / found['predicted_bytes']:.0%})" in said
