"""What the tests of compiled layers share."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Layers are traced and divided into forward and backward pass as ever, but run by torch: Inductor is slow."""
    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    yield
    torch.compiler.reset()
