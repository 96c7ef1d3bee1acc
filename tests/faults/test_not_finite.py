"""NaN in what is read and in a gradient: the step is skipped on all ranks, and too many in a row end the run.

That infinite losses are skipped alike, and that every rank comes to the same weights as without the step, is shown by
tests/ranks/test_skipped_steps.py.
"""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megaslm.training.export import export
from tests.faults.figures import Figures
from tests.faults.runs import STEPS, Material, records, run_ranks, steps_made, tokens_of, weights_sha256
from tests.messages import Says, line_with, lines_with


def test_steps_that_are_not_finite_are_skipped(
    material: Material, figures: Figures, tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    config = material.config(tmp_path / "run")
    capfd.readouterr()
    assert run_ranks(config, injected="nan@rank1:step3:data; nan@rank0:step6") == [0, 0]
    said = capfd.readouterr()
    skipped = records(config, "skipped")
    assert [record["step"] for record in skipped] == [3, 6]
    says(skipped[0]["reason"])
    assert said.out.count("skipped: ") == 2
    made = records(config)
    assert [record["step"] for record in made] == [1, 2, 4, 5, 7, 8]
    assert all(math.isfinite(record["loss"]) for record in made)
    export(Path(config.run_dir), tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    figures.record(
        "not_finite",
        skipped=len(skipped),
        injected=said.err.count("injected fault nan@"),
        steps_made=len(made),
        steps=STEPS,
    )


@pytest.mark.slow
def test_it_does_not_matter_on_which_rank(material: Material, tmp_path: Path) -> None:
    one, other = material.config(tmp_path / "one"), material.config(tmp_path / "other")
    assert run_ranks(one, injected="nan@rank1:step3:data; nan@rank0:step6") == [0, 0]
    assert run_ranks(other, injected="nan@rank0:step3:data; nan@rank1:step6") == [0, 0]
    assert weights_sha256(one) == weights_sha256(other)


@pytest.mark.slow
def test_a_run_that_has_made_no_update_yet_is_saved_and_resumes(
    material: Material, tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    # The ranks are asked before a step whether one is told to stop, so that the step after ends the run.
    ill = "nan@rank0:step1; nan@rank0:step2"
    at_once = material.config(tmp_path / "at-once")
    assert run_ranks(at_once, injected=ill) == [0, 0]
    config = material.config(tmp_path / "run", checkpoint={"every_tokens": tokens_of(1)})
    assert run_ranks(config, injected=f"{ill}; term@rank1:step1") == [75, 75]
    said = capfd.readouterr()
    assert lines_with(said.out, tmp_path / "run" / "checkpoints" / "step-00000001")
    says(line_with(said.err, "SIGTERM"), "step 2 ")
    assert run_ranks(config) == [0, 0]
    assert steps_made(capfd.readouterr().out) == list(range(3, STEPS + 1))
    assert [record["step"] for record in records(config, "skipped")] == [1, 2]
    assert weights_sha256(config) == weights_sha256(at_once)


@pytest.mark.slow
def test_too_many_in_a_row_end_the_run(material: Material, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = material.config(tmp_path / "run", guard={"max_skipped_steps": 2})
    assert run_ranks(config, injected="nan@rank1:step6; nan@rank0:step7") == [1, 1]
    said = capfd.readouterr().err
    assert "step 7: " in said
    assert "guard.max_skipped_steps = 2: " in said
