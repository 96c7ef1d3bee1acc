"""On a GPU the head is timed in its stream, and nobody waits for that."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from megaslm.engine.head_stopwatch import HeadStopwatch
from megaslm.model.selective_head import HeadSettings, SelectiveHead
from megaslm.slm.choice import Every

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; this machine has none"),
]

ROWS, WIDTH, VOCAB_SIZE = 256, 128, 1024
LONG_CYCLES = 400_000_000
"""At most 2 GHz: they take 0.2 s or more."""


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_slow_head_shows_and_nothing_waits_for_the_gpu() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lm_head = nn.Linear(WIDTH, VOCAB_SIZE, bias=False, device="cuda", dtype=torch.bfloat16)
            self.config = LlamaConfig()

    head = SelectiveHead.taking_over(Holder(), HeadSettings())
    hidden = torch.randn(ROWS, WIDTH, device="cuda", dtype=torch.bfloat16)
    targets = torch.randint(VOCAB_SIZE, (ROWS,), device="cuda")
    every = Every(torch.ones(ROWS, dtype=torch.bool, device="cuda"))
    head(hidden, targets, every)
    stopwatch = HeadStopwatch(head, torch.device("cuda", 0))

    with no_waiting():
        head(hidden, targets, every)
        stopwatch.end_step()
    torch.cuda.synchronize()
    with no_waiting():
        stopwatch.end_step()
        quick = stopwatch.read() * 3 * ROWS
    assert 0.0 < quick < 0.1

    head.register_forward_pre_hook(lambda *_: torch.cuda._sleep(LONG_CYCLES))
    with no_waiting():
        head(hidden, targets, every)
        stopwatch.end_step()
        assert math.isnan(stopwatch.read())
    torch.cuda.synchronize()
    stopwatch.end_step()
    assert stopwatch.read() * 3 * ROWS > 0.15
