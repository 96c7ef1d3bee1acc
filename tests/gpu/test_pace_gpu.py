"""A GPU's pace is told by a matrix product in its stream."""

import pytest
import torch

from megaslm.health.pace import product_seconds

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; this machine has none"),
]


def test_eight_times_the_work_takes_longer() -> None:
    device = torch.device("cuda", 0)
    small, large = (product_seconds(device, size) for size in (2048, 4096))
    assert 0.0 < small < large < 1.0
