"""Every ZeRO stage, and the optimiser on the host, train alike and can be exported."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from megaslm.training.export import export
from tests.integration.conftest import Chain
from tests.toy import run_config
from tests.training import losses, run_training


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
