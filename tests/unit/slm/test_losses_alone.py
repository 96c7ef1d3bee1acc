import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megaslm.slm import head_pass
from megaslm.slm.head_pass import RunningLosses
from megaslm.slm.measure import LOSSES, measure
from megaslm.slm.token_loss import weighted_loss

ROWS, WIDTH, VOCAB = 7, 24, 50
INF, NAN = float("inf"), float("nan")


def in_blocks(logits: Tensor, targets: Tensor, columns: int) -> Tensor:
    running = RunningLosses(targets, logits.dtype)
    for first in range(0, logits.shape[1], columns):
        running.add(logits[:, first : first + columns].clone(), first)
    return running.losses()


def inputs(scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return scale * torch.randn(ROWS, VOCAB, generator=generator), torch.randint(0, VOCAB, (ROWS,), generator=generator)


@pytest.mark.parametrize("columns", [1, 7, 50, 64])
@pytest.mark.parametrize("scale", [0.0, 3.0, 1e4])
def test_losses_in_blocks_are_those_of_float64(columns: int, scale: float) -> None:
    logits, targets = inputs(scale)
    expected = F.cross_entropy(logits.double() + 100.0, targets, reduction="none")
    losses = in_blocks(logits + 100.0, targets, columns)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("columns", [1, 7, 50])
def test_blocks_without_a_possible_token_change_nothing(columns: int) -> None:
    logits, targets = inputs()
    logits[:, :15] = logits[:, 40:] = -INF
    targets = targets % 25 + 15
    expected = F.cross_entropy(logits.double(), targets, reduction="none")
    torch.testing.assert_close(in_blocks(logits, targets, columns).double(), expected, rtol=2e-6, atol=1e-6)
    assert in_blocks(logits, torch.zeros_like(targets), columns).tolist() == [INF] * ROWS


@pytest.mark.parametrize("columns", [1, 7, 50])
def test_a_broken_row_gives_nan_and_leaves_the_others(columns: int) -> None:
    logits, targets = inputs()
    expected = in_blocks(logits, targets, columns)
    logits[0, 0], logits[2, -1], logits[3, 20], logits[4] = NAN, NAN, INF, -INF
    targets[3] = 20
    targets[5] = VOCAB
    losses = in_blocks(logits, targets, columns)
    assert losses.isnan().tolist() == [True, False, True, True, True, True, False]
    assert losses[[1, 6]].equal(expected[[1, 6]])


@pytest.mark.parametrize("logit_scale", [0.25, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_losses_alone_are_those_of_the_pass_with_a_gradient(
    dtype: torch.dtype, logit_scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_pass, "_ROWS", 3)
    monkeypatch.setattr(head_pass, "_COLUMNS", 7)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, WIDTH, generator=generator).to(dtype)
    weight = torch.randn(VOCAB, WIDTH, generator=generator).to(dtype)
    bias = torch.randn(VOCAB, generator=generator).to(dtype)
    targets = torch.randint(0, VOCAB, (ROWS,), generator=generator)
    _, expected, _ = weighted_loss(hidden, weight, targets, torch.ones(ROWS), bias, logit_scale)
    found = measure(hidden, weight, targets, LOSSES, bias, logit_scale).losses
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)
