"""What a rank says of its own pace."""

import time

import pytest
import torch

from megaslm.health.pace import product_seconds


def test_a_product_is_timed_in_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    quick = product_seconds(device, 64)
    assert 0.0 < quick < product_seconds(device, 512)
    # A pause, in which the host lets other programs run, is no work.
    product = torch.mm

    def after_a_pause(*arguments: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return product(*arguments, out=out)

    monkeypatch.setattr(torch, "mm", after_a_pause)
    assert product_seconds(device, 64) < 0.01
