import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megaslm.slm import token_loss
from megaslm.slm.token_loss import selective_loss, token_losses

ROWS, WIDTH, VOCAB = 37, 24, 50


@pytest.fixture(params=[1, 8, 1000], ids=lambda rows: f"chunks-of-{rows}")
def chunk_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(token_loss, "_LOGIT_BYTES_ON_CPU", 4 * VOCAB * request.param)
    return int(request.param)


def inputs(
    dtype: torch.dtype = torch.float32, bias: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, VOCAB, (ROWS,), generator=generator)
    offset = torch.randn(VOCAB, generator=generator).to(dtype).requires_grad_() if bias else None
    row_weight = torch.rand(ROWS, generator=generator)
    return hidden, weight, targets, offset, row_weight


def every_third(losses: Tensor) -> Tensor:
    return torch.arange(len(losses)) % 3 == 0


def exact(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> Tensor:
    logits = hidden.double() @ weight.double().t()
    return F.cross_entropy(logits if bias is None else logits + bias.double(), targets, reduction="none")


@pytest.mark.usefixtures("chunk_rows")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)])
def test_losses_and_gradients_are_those_of_float64(bias: bool, dtype: torch.dtype, tolerance: float) -> None:
    hidden, weight, targets, offset, row_weight = inputs(dtype, bias)
    parameters = [tensor for tensor in (hidden, weight, offset) if tensor is not None]

    total, losses = selective_loss(hidden, weight, targets, row_weight, every_third, offset)
    found = torch.autograd.grad(total * 3.0, parameters)
    expected_losses = exact(hidden, weight, targets, offset)
    selected = every_third(losses)
    expected_total = (expected_losses * row_weight)[selected].sum()
    expected = torch.autograd.grad(expected_total * 3.0, parameters)

    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected_losses.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total.double(), expected_total.detach(), rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.double() - theirs.double()).norm() <= tolerance * theirs.double().norm()


def test_gradients_by_finite_differences() -> None:
    hidden, weight, targets, offset, row_weight = inputs(torch.float64)

    def total(*parameters: Tensor) -> Tensor:
        return selective_loss(parameters[0], parameters[1], targets, row_weight, every_third, parameters[2])[0]

    assert offset is not None
    assert torch.autograd.gradcheck(total, (hidden, weight, offset))


def test_unselected_rows_get_no_gradient() -> None:
    hidden, weight, targets, _, row_weight = inputs()
    total, losses = selective_loss(hidden, weight, targets, row_weight, every_third)
    (grad_hidden,) = torch.autograd.grad(total, [hidden])
    assert (grad_hidden[~every_third(losses)] == 0).all()
    assert (grad_hidden[every_third(losses)] != 0).any(1).all()


def test_an_empty_selection_runs_its_backward() -> None:
    hidden, weight, targets, _, row_weight = inputs()
    total, _ = selective_loss(
        hidden, weight, targets, row_weight, lambda losses: torch.zeros_like(losses, dtype=torch.bool)
    )
    assert total.item() == 0.0
    assert all((grad == 0).all() for grad in torch.autograd.grad(total, [hidden, weight]))


def test_the_choice_sees_every_loss_and_no_gradient() -> None:
    hidden, weight, targets, _, row_weight = inputs()
    seen: list[Tensor] = []

    def select(losses: Tensor) -> Tensor:
        seen.append(losses)
        return every_third(losses)

    _, losses = selective_loss(hidden, weight, targets, row_weight, select)
    assert len(seen) == 1
    assert not seen[0].requires_grad
    assert not losses.requires_grad
    torch.testing.assert_close(seen[0], token_losses(hidden, weight, targets), rtol=0, atol=0)


def test_no_tensor_of_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_loss, "_LOGIT_BYTES_ON_CPU", 4 * VOCAB * 4)
    largest = 0
    product = token_loss._product

    def measured(left: Tensor, right: Tensor) -> Tensor:
        nonlocal largest
        result = product(left, right)
        largest = max(largest, result.numel() if result.shape[-1] == VOCAB else 0)
        return result

    monkeypatch.setattr(token_loss, "_product", measured)
    hidden, weight, targets, _, row_weight = inputs()
    selective_loss(hidden, weight, targets, row_weight, every_third)[0].backward()
    assert largest == 4 * VOCAB
