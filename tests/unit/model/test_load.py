import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megaslm.config.load import load
from megaslm.config.plan import parameter_count as planned_count
from megaslm.config.schema import Architecture, RunConfig
from megaslm.errors import ModelError
from megaslm.model.load import build_from_shape, draw_weights, load_pretrained, parameter_count
from megaslm.model.selective_lm import SelectiveLM
from tests.launched import ROOT
from tests.messages import Says
from tests.toy import EOS_ID, SHAPE, VOCAB_SIZE, Unsharded


def toy(seed: int = 0, tied: bool = False) -> torch.nn.Module:
    architecture = Architecture.model_validate({**SHAPE, "tie_embeddings": tied})
    lm = build_from_shape(architecture, eos_id=EOS_ID, dtype=torch.float32)
    draw_weights(lm, seed=seed, standard_deviation=0.02, sharding=Unsharded())
    return lm


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    toy().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ("demo/base.yaml", 1_262_720),
        ("shapes/tinyllama-1b.yaml", 1_100_048_384),
        ("shapes/mistral-7b.yaml", 7_241_732_096),
    ],
)
def test_models_have_the_right_number_of_parameters(config: str, count: int) -> None:
    architecture = load(RunConfig, ROOT / "configs" / config).value.model.from_scratch
    assert architecture is not None
    with torch.device("meta"):
        lm = build_from_shape(architecture, eos_id=2, dtype=torch.bfloat16)
    assert parameter_count(lm) == planned_count(architecture).total == count


def test_random_weights_know_nothing() -> None:
    rows = torch.randint(3, VOCAB_SIZE, (8, 33), generator=torch.Generator().manual_seed(0))
    losses = SelectiveLM(toy().eval(), eos_id=EOS_ID, document_isolation=True).measure(rows).losses
    assert abs(float(losses.mean()) - math.log(VOCAB_SIZE)) < 0.02


def test_weights_depend_on_the_seed_alone() -> None:
    assert all(torch.equal(a, b) for a, b in zip(toy().parameters(), toy().parameters(), strict=True))
    assert not torch.equal(next(toy(seed=1).parameters()), next(toy(seed=2).parameters()))


def test_a_folder_gives_back_its_weights(folder: Path) -> None:
    lm = load_pretrained(folder, dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(toy().parameters(), lm.parameters(), strict=True))


def test_a_missing_weight_is_named(folder: Path, says: Says) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError) as refused:
        load_pretrained(folder, dtype=torch.float32)
    says(refused, folder, "1", "model.layers.1.mlp.up_proj.weight")


def test_a_weight_of_another_size_is_refused(folder: Path, says: Says) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": VOCAB_SIZE + 1}))
    with pytest.raises(ModelError) as refused:
        load_pretrained(folder, dtype=torch.float32)
    says(refused, folder)


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_takes_over_its_parameters(tied: bool) -> None:
    lm = toy(tied=tied)
    names = dict(lm.named_parameters())
    rows = torch.randint(3, VOCAB_SIZE, (2, 9))
    logits = lm(rows).logits
    model = SelectiveLM(lm, eos_id=EOS_ID, document_isolation=False)
    assert {f"lm.{name}" for name in names} == {name for name, _ in model.named_parameters()}
    torch.testing.assert_close(lm(rows).logits, logits)
    assert (lm.lm_head.weight is lm.model.embed_tokens.weight) == tied
