"""The closed form of the head's memory against the tensors that really live in it."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from megaslm.model.traced_memory import LiveBytes
from megaslm.slm.choice import Selected
from megaslm.slm.head_memory import HeadWay, head_bytes
from megaslm.slm.token_loss import selective_loss, weighted_loss
from tests.chosen import selected

ROWS, WIDTH, VOCABULARY = 3000, 48, 8192
RATIO = 0.5


@dataclass(frozen=True)
class BestHalf:
    """Takes the half of the rows with the largest losses, whose threshold is known beforehand."""

    threshold: float
    by_entropy: bool = False
    weights: None = None

    @property
    def forecast(self) -> SimpleNamespace:
        return SimpleNamespace(share=RATIO, margin=lambda losses, rows: losses - self.threshold)

    def __call__(self, losses: Tensor) -> Selected:
        return selected(losses > self.threshold)

    def unsortable(self, losses: Tensor) -> Tensor:
        return torch.zeros_like(losses, dtype=torch.bool)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", ["every", "bracket", "cache", "recompute"])
def test_the_formula_says_what_lives_at_once(way: HeadWay, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, dtype=dtype, requires_grad=True)
    targets, ones = torch.randint(VOCABULARY, (ROWS,)), torch.ones(ROWS)
    median = weighted_loss(hidden, weight, targets, ones)[1].median()
    with LiveBytes([hidden, weight, targets, ones]) as live:
        if way == "every":
            weighted_loss(hidden, weight, targets, ones)
        else:
            selective_loss(hidden, weight, targets, ones, BestHalf(float(median)), method=way)
    expected = head_bytes(ROWS, WIDTH, VOCABULARY, dtype, way, keep_ratio=RATIO, on_gpu=False)
    assert live.peak_bytes == pytest.approx(expected, rel=0.05)


def test_on_a_gpu_a_chunk_has_float32_logits_and_bf16_exponentials() -> None:
    rows, width, vocabulary = 16_384, 2048, 32_000
    gradients = 4 * (rows + vocabulary) * width
    chunk = 4096  # 512 MiB of float32 logits hold 4194 rows, so that four chunks are needed.
    found = head_bytes(rows, width, vocabulary, torch.bfloat16, "every", keep_ratio=1.0, on_gpu=True)
    # Logits, their exponentials, and those of the chunk before.
    assert found == gradients + (4 + 2 + 2) * chunk * vocabulary
    # The exponentials of all rows, and of the selected ones the largest chunk: 8388 fit, half of them are 8192.
    cached = head_bytes(rows, width, vocabulary, torch.bfloat16, "cache", keep_ratio=0.5, on_gpu=True)
    assert cached == gradients + 2 * rows * vocabulary + 8192 * (2 * vocabulary + 8 * width)
