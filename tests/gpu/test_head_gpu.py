"""The head on a GPU: the parity test of the CPU in both precisions, and the memory that each method takes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megaslm.slm.choice import Selected
from megaslm.slm.token_loss import HeadMethod, cache_bytes, selective_loss, weighted_loss
from tests.chosen import selected

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; this machine has none"),
]

ROWS, WIDTH, VOCAB = 3000, 256, 5003
METHODS: list[HeadMethod] = ["cache", "bracket", "recompute"]


class Above:
    """The rows whose loss is above `cut`, forecast a little too high."""

    share = 0.5
    by_entropy = False
    weights = None

    def __init__(self, cut: float) -> None:
        self.cut = cut
        self.forecast = self

    def margin(self, losses: Tensor, rows: Tensor) -> Tensor:
        return losses - self.cut - 0.1

    def __call__(self, losses: Tensor) -> Selected:
        return selected(losses > self.cut, self.unsortable(losses))

    def unsortable(self, losses: Tensor) -> Tensor:
        return ~torch.isfinite(losses)


def drawn(dtype: torch.dtype, rows: int = ROWS, width: int = WIDTH, vocab: int = VOCAB) -> tuple[Tensor, ...]:
    generator = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator, device="cuda").to(dtype).requires_grad_()
    weight = (torch.randn(vocab, width, generator=generator, device="cuda") * width**-0.5).to(dtype).requires_grad_()
    bias = torch.randn(vocab, generator=generator, device="cuda").to(dtype).requires_grad_()
    targets = torch.randint(0, vocab, (rows,), generator=generator, device="cuda")
    row_weight = torch.rand(rows, generator=generator, device="cuda") + 0.1
    return hidden, weight, bias, targets, row_weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", [*METHODS, "every row"])
def test_gradients_are_those_of_float64(method: HeadMethod, dtype: torch.dtype) -> None:
    hidden, weight, bias, targets, row_weight = drawn(dtype)
    logits = hidden.double() @ weight.double().t() + bias.double()
    expected_losses = F.cross_entropy(logits, targets, reduction="none")
    cut = float(expected_losses.detach().median())
    if method == "every row":
        total, losses, _ = weighted_loss(hidden, weight, targets, row_weight, bias)
        mask = torch.ones_like(losses, dtype=torch.bool)
    else:
        total, losses, mask, _ = selective_loss(hidden, weight, targets, row_weight, Above(cut), bias, method=method)
    # As training has it: the number of selected targets, which bf16 cannot hold.
    found = torch.autograd.grad(total / 1801, [hidden, weight, bias])
    expected = torch.autograd.grad((expected_losses * row_weight)[mask].sum() / 1801, [hidden, weight, bias])
    # Losses come from float32 products of the bf16 inputs, never from bf16 logits.
    assert (losses - expected_losses).abs().max() < 1e-4
    tolerance = 5e-3 if dtype == torch.bfloat16 else 1e-3 if method == "cache" else 1e-5
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.double() - theirs.double()).norm() <= tolerance * theirs.double().norm()
        # Rounding errors cancel in the norm; a factor that was rounded would not.
        assert abs(float(ours.double().norm() / theirs.double().norm()) - 1) < 2e-4


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_repeated_bit_for_bit(method: HeadMethod) -> None:
    def gradients() -> tuple[Tensor, ...]:
        hidden, weight, bias, targets, row_weight = drawn(torch.bfloat16)
        total, *_ = selective_loss(hidden, weight, targets, row_weight, Above(8.5), bias, method=method)
        return torch.autograd.grad(total, [hidden, weight, bias])

    assert all(torch.equal(one, other) for one, other in zip(gradients(), gradients(), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_only_the_cache_has_memory_of_the_size_of_all_logits(method: HeadMethod) -> None:
    rows, vocab = 32_768, 32_000
    hidden, weight, _, targets, row_weight = drawn(torch.bfloat16, rows=rows, vocab=vocab)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    selective_loss(hidden, weight, targets, row_weight, Above(10.5), method=method)[0].backward()
    peak = torch.cuda.max_memory_allocated() - before
    stated = cache_bytes(rows, vocab) if method == "cache" else 0
    # Beside what is stated: a chunk of float32 logits, its exponentials, and what is copied of them.
    assert stated < peak < stated + (3 << 29) + (1 << 28)
