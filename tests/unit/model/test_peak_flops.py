"""Peaks by the names that devices give themselves."""

import platform
from pathlib import Path

import pytest
import torch

from megaslm.model import flops as module
from megaslm.model.flops import device_name, peak_flops


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10", 125),
    ],
)
def test_known_devices(name: str, tera: float) -> None:
    assert peak_flops(name, "bf16") == tera * 1e12
    assert peak_flops(name, "fp32") is None


@pytest.mark.parametrize(
    "name",
    ["AMD EPYC 9354 32-Core Processor", "Tesla V100-SXM2-32GB", "NVIDIA H20", "NVIDIA A10G", "NVIDIA L40", "x86_64",
     "NVIDIA H100 80GB HBM3 MIG 1g.10gb"],
)  # fmt: skip
def test_of_others_no_peak_is_claimed(name: str) -> None:
    assert peak_flops(name, "bf16") is None


def test_a_processor_is_called_what_the_system_calls_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processors = tmp_path / "cpuinfo"
    monkeypatch.setattr(module, "_PROCESSORS", processors)
    assert device_name(torch.device("cpu")) == platform.machine()
    processors.write_text("processor\t: 0\nmodel name\t: A fast: one\nmodel name\t: another\n")
    assert device_name(torch.device("cpu")) == "A fast: one"
