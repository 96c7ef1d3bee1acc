"""NaN in what is read and in a gradient: the step is skipped on all ranks, and too many in a row end the run."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megaslm.config.schema import RunConfig
from megaslm.training.export import export
from tests.faults.figures import Figures
from tests.faults.runs import STEPS, Material, records, run_ranks, weights_sha256

pytestmark = pytest.mark.slow


def weights(config: RunConfig, folder: Path) -> dict[str, torch.Tensor]:
    export(Path(config.run_dir), folder)
    return load_file(folder / "model.safetensors")


def test_steps_that_are_not_finite_are_skipped(
    material: Material, figures: Figures, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = material.config(tmp_path / "run")
    assert run_ranks(config, injected="nan@rank1:step3:data; nan@rank0:step6") == [0, 0]
    skipped = records(config, "skipped")
    assert [record["step"] for record in skipped] == [3, 6]
    assert "in the rows" in skipped[0]["reason"]
    assert capfd.readouterr().out.count("skipped: ") == 2
    made = records(config)
    assert [record["step"] for record in made] == [1, 2, 4, 5, 7, 8]
    assert all(math.isfinite(record["loss"]) for record in made)
    assert all(torch.isfinite(weight).all() for weight in weights(config, tmp_path / "model").values())

    # The ranks hold a part of the weights each: the same faults give the same whole.
    again = material.config(tmp_path / "again")
    assert run_ranks(again, injected="nan@rank0:step3:data; nan@rank1:step6") == [0, 0]
    assert weights_sha256(again) == weights_sha256(config)
    figures.record("not_finite", skipped=len(skipped), injected=2, steps=STEPS)


def test_too_many_in_a_row_end_the_run(material: Material, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = material.config(tmp_path / "run", guard={"max_skipped_steps": 2})
    assert run_ranks(config, injected="nan@rank1:step6; nan@rank0:step7") == [1, 1]
    said = capfd.readouterr().err
    assert "step 7: skipped as the last of 2 in a row, which is guard.max_skipped_steps" in said
