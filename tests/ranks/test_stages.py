"""Every ZeRO stage, and the optimiser on the host, train alike and can be exported."""

import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from megaslm.dataset.manifest import TOKENIZER
from megaslm.training.export import export
from tests.chain import Chain
from tests.model_folders import edit_config, make_model
from tests.toy import run_config
from tests.training import losses, run_training, with_steps


@pytest.mark.parametrize(("stage", "offload"), [(0, False), (1, False), (2, True), (3, True)])
def test_a_stage_trains_as_stage_3_does(chain: Chain, tmp_path: Path, stage: int, offload: bool) -> None:
    config = run_config(tmp_path / "run", chain.tokens, zero={"stage": stage, "offload_optimizer": offload})
    run_training(config)
    export(tmp_path / "run", tmp_path / "model")

    assert losses(tmp_path / "run") == pytest.approx(losses(chain.reference_run), abs=1e-5)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    reference = AutoModelForCausalLM.from_pretrained(chain.reference)
    for ours, theirs in zip(exported.parameters(), reference.parameters(), strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


def test_a_head_of_its_own_is_loaded_at_every_stage(chain: Chain, tmp_path: Path) -> None:
    """Also where config.json says that it is tied."""
    make_model(tmp_path / "origin")
    shutil.copytree(chain.tokens / TOKENIZER, tmp_path / "origin", dirs_exist_ok=True)
    edit_config(tmp_path / "origin", tie_word_embeddings=True)
    found = []
    for stage in (1, 3):
        run = tmp_path / f"stage-{stage}"
        model = {"from_scratch": None, "from_pretrained": str(tmp_path / "origin")}
        run_training(with_steps(run_config(run, chain.tokens, model=model, zero={"stage": stage}), 2))
        export(run, run / "exported")
        exported = AutoModelForCausalLM.from_pretrained(run / "exported")
        assert exported.config.tie_word_embeddings is False
        assert exported.lm_head.weight is not exported.model.embed_tokens.weight
        found.append(losses(run))
    assert found[0] == pytest.approx(found[1], abs=1e-5)
