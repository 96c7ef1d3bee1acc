"""What an export needs beside weights is there at any time, and is what the run now is."""

from pathlib import Path

import torch

from megaslm.config.schema import Architecture
from megaslm.model.export import describe_model
from megaslm.model.load import build_from_shape
from tests.toy import EOS_ID, SHAPE, make_tokenizer


def test_a_description_is_left_as_it_is_and_replaced_where_it_has_changed(tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "tokenizer")
    lm = build_from_shape(Architecture.model_validate(SHAPE), eos_id=EOS_ID, dtype=torch.float32)
    folder = tmp_path / "run" / "model"
    describe_model(lm, torch.float32, tmp_path / "tokenizer", folder, origin=None)
    first = folder.stat().st_ino
    describe_model(lm, torch.float32, tmp_path / "tokenizer", folder, origin=None)
    assert folder.stat().st_ino == first
    describe_model(lm, torch.bfloat16, tmp_path / "tokenizer", folder, origin=None)
    assert '"bfloat16"' in (folder / "config.json").read_text()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
