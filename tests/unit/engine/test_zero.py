"""What AdamW decays, and what of DeepSpeed is left out."""

import importlib
from pathlib import Path

import torch

from megaslm.config.schema import Architecture
from megaslm.engine.zero import ParameterGroups, adamw
from megaslm.model.load import build_from_shape
from tests.toy import EOS_ID, SHAPE, run_config


def test_matrices_decay_and_gains_do_not() -> None:
    model = build_from_shape(Architecture(**SHAPE), eos_id=EOS_ID, dtype=torch.float32)
    groups = ParameterGroups.of(model)
    gains = [parameter for name, parameter in model.named_parameters() if "norm" in name]
    assert len(gains) == 2 * SHAPE["num_layers"] + 1
    assert {id(parameter) for parameter in groups.undecayed} == {id(parameter) for parameter in gains}
    assert len(groups.decayed) + len(gains) == len(list(model.parameters()))


def test_a_step_without_a_gradient_shrinks_matrices_alone() -> None:
    model = build_from_shape(Architecture(**SHAPE), eos_id=EOS_ID, dtype=torch.float32)
    train = run_config(Path("unused"), Path("unused"), train={"lr": 0.1, "weight_decay": 0.5}).train
    expected: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        parameter.data.fill_(2.0)
        parameter.grad = torch.zeros_like(parameter)
        expected[name] = 2.0 if "norm" in name else 1.9
    adamw(model, {"zero_optimization": {}}, train).step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, expected[name]), msg=name)


def test_torch_is_not_made_to_compile_an_optimiser_that_never_runs() -> None:
    """It would import Inductor in every rank."""
    muon = importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    assert muon.muon_update.__code__.co_filename == muon.__file__
