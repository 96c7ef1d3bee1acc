"""`megaslm plan` as a user calls it."""

import json
from pathlib import Path

from tests.forked_cli import call_megaslm, run_megaslm
from tests.messages import Says
from tests.shipped import CONFIGS

RUN = CONFIGS / "rho-math-1b" / "slm.yaml"


def test_a_plan_is_printed_and_written(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    options = ("--gpus", "8", "--gpu", "a100-80g", "--price", "1.5", "--json", file)
    reference = ("--reference-run", RUN.parent / "reference.yaml", "--epoch-tokens", "500000000")
    said = run_megaslm("plan", RUN, *options, *reference)
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["parameters"]["embedding"] == 65_536_000
    for told in ("1,100,048,384", "14,305", "8 GPUs (a100-80g)", "30% MFU", f"{found['peak_bytes'] / 2**30:.2f}"):
        assert told in said
    assert found["fits"]
    assert found["training"]["money"] == 1.5 * found["training"]["gpu_hours"]
    # 3 epochs of 476 steps against 14,305 steps.
    assert found["reference_training"]["hours"] / found["training"]["hours"] == 3 * 476 / 14_305


def test_settings_that_fit_are_printed_as_the_command_takes_them(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    options = ("--gpus", "8", "--gpu", "l4", "--json", file)
    said = run_megaslm("plan", RUN, *options, "--fit")
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["fit"]
    assert found["fits"]
    settings = [option for override in found["fit"] for option in ("--set", override)]
    assert " ".join(settings) in said
    run_megaslm("plan", RUN, *options, *settings)
    assert json.loads(file.read_text(encoding="utf-8"))["memory"] == found["memory"]


def test_a_run_whose_model_is_nowhere_is_told_what_to_do(says: Says) -> None:
    run = call_megaslm("plan", CONFIGS / "demo" / "slm.yaml", "--gpu", "h100-80g", "--gpus", "2")
    assert run.returncode == 2
    says(run.stderr, "model.from_run", "--model")
    base = CONFIGS / "demo" / "base.yaml"
    assert "1,262,720" in run_megaslm("plan", CONFIGS / "demo" / "slm.yaml", "--model", base)
