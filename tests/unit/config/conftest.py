"""A small valid run to vary."""

from collections.abc import Callable
from pathlib import Path

import pytest

from megaslm.config.load import load
from megaslm.config.schema import RunConfig

RUN = """\
run_dir: runs/test
model:
  from_scratch: {vocab_size: 512, hidden_size: 64, intermediate_size: 128, num_layers: 2, num_heads: 4}
data: {train: runs/tokens, seq_len: 128}
train:
  objective: slm
  total_tokens: 100_000
  global_batch_tokens: 1024
  micro_batch_rows: 3
  lr: 2e-5
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """A complete configuration file, the working folder being its own."""
    path = tmp_path / "run.yaml"
    path.write_text(RUN, encoding="utf-8")
    return path


@pytest.fixture
def run_config(run_file: Path) -> Callable[..., RunConfig]:
    """The run with some overrides."""
    return lambda *overrides: load(RunConfig, run_file, overrides).value
