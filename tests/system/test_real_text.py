"""Real text beyond the demo: a recipe given by its path, prepared and trained on."""

import json
import os
from pathlib import Path

import pytest
import yaml

from megaslm.observe.records import read_validations
from tests.launched import run_megaslm
from tests.toy import SHAPE, run_config, write_config

SHARED_DATA = os.environ.get("MEGASLM_SHARED_DATA")


@pytest.mark.skipif(SHARED_DATA is None, reason="MEGASLM_SHARED_DATA names no folder of real text")
def test_the_open_logic_text(tmp_path: Path) -> None:
    recipe = {
        "name": "openlogic",
        "licence": "CC-BY-4.0",
        "seq_len": 64,
        "tokenizer": {"train_sentencepiece": {"vocab_size": 1024}},
        "sources": [{"domain": "logic", "reader": "jsonl", "paths": [f"{SHARED_DATA}/text/openlogic.jsonl.gz"]}],
        "heldout_fraction": 0.02,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    said = tmp_path / "prepared.json"
    run_megaslm("prepare", tmp_path / "recipe.yaml", tmp_path / "tokens", "--json", said)
    assert json.loads(said.read_text())["splits"]["train"]["logic"]["tokens"] > 500_000

    config = run_config(
        tmp_path / "run",
        tmp_path / "tokens",
        model={"from_scratch": {**SHAPE, "vocab_size": 1024}},
        data={"seq_len": 64},
        train={"global_batch_tokens": 64 * 64, "total_tokens": 20 * 64 * 64, "micro_batch_rows": 64},
        validation={"sets": {"held": {"dataset": str(tmp_path / "tokens")}}},
    )
    run_megaslm("train", write_config(tmp_path / "run.yaml", config))
    before, after = read_validations(tmp_path / "run" / "metrics.jsonl")
    assert after.loss < before.loss - 0.5
