"""The one parity test that every way through the head passes, and what is particular to each."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megaslm.errors import NonFiniteCriterion
from megaslm.slm import head_pass
from megaslm.slm.choice import Deferred, HeadOutput, Known, Selected, Weights, no_threshold
from megaslm.slm.measure import LOSSES, Measure, measure
from megaslm.slm.token_loss import (
    HeadMethod,
    cache_bytes,
    deferred_loss,
    selective_loss,
    weighted_loss,
)
from tests.chosen import selected
from tests.pairwise import pairwise

ROWS, WIDTH, VOCAB = 37, 24, 50
LOGIT_SCALES = [1.0, 0.25, 2.0]
METHODS: list[HeadMethod] = ["cache", "bracket", "recompute"]
Case = tuple[int, float, HeadMethod, torch.dtype, bool]
CASES: list[Case] = list(product((1, 8, 1000), LOGIT_SCALES, METHODS, (torch.float32, torch.bfloat16), (False, True)))
EVERY_PAIR = pairwise(CASES, lambda case: {str(place): value for place, value in enumerate(case)})


@pytest.fixture(params=[1, 8, 1000], ids=lambda rows: f"chunks-of-{rows}")
def chunk_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(head_pass, "_LOGIT_BYTES_ON_CPU", 4 * VOCAB * request.param)
    return int(request.param)


@dataclass(frozen=True)
class LossesAbove:
    """A forecast that takes the rows whose loss, or entropy, is above `cut`."""

    cut: float
    share: float

    def margin(self, losses: Tensor, rows: Tensor, entropies: Tensor | None = None) -> Tensor:
        return (losses if entropies is None else entropies) - self.cut


@dataclass
class Larger:
    """Chooses the rows whose loss, or entropy, is above `cut`."""

    cut: float
    forecast: LossesAbove | None = None
    by_entropy: bool = False
    weights: Weights | None = None

    def __call__(self, losses: Tensor, entropies: Tensor | None = None) -> Selected:
        assert (entropies is not None) == self.by_entropy
        measured = losses if entropies is None else entropies
        assert not measured.requires_grad
        assert not torch.is_grad_enabled()
        bad = ~torch.isfinite(measured)
        return selected(measured > self.cut, bad)

    def unsortable(self, losses: Tensor) -> Tensor:
        return ~torch.isfinite(losses)


FORECASTS = {
    "right": LossesAbove(5.0, 0.6),
    "too many": LossesAbove(1.0, 0.9),
    "too few": LossesAbove(8.0, 0.3),
    "no places": LossesAbove(5.0, 0.0),
    "none": None,
}


def inputs(
    dtype: torch.dtype = torch.float32, bias: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, VOCAB, (ROWS,), generator=generator)
    offset = torch.randn(VOCAB, generator=generator).to(dtype).requires_grad_() if bias else None
    row_weight = torch.rand(ROWS, generator=generator) + 0.1
    return hidden, weight, targets, offset, row_weight


def exact(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, logit_scale: float = 1.0) -> Tensor:
    logits = hidden.double() @ weight.double().t()
    logits = (logits if bias is None else logits + bias.double()) * logit_scale
    return F.cross_entropy(logits, targets, reduction="none")


def assert_parity(
    loss: Callable[..., tuple[Tensor, Tensor]],
    mask_of: Callable[[Tensor], Tensor],
    *,
    dtype: torch.dtype,
    bias: bool,
    logit_scale: float,
    tolerance: float,
) -> None:
    """Losses, weighted sum and gradients against float64, under non-uniform weights and an upstream factor."""
    hidden, weight, targets, offset, row_weight = inputs(dtype, bias)
    parameters = [tensor for tensor in (hidden, weight, offset) if tensor is not None]
    total, losses, *_ = loss(hidden, weight, targets, row_weight, offset, logit_scale)
    found = torch.autograd.grad(total * 3.0, parameters)
    expected_losses = exact(hidden, weight, targets, offset, logit_scale)
    mask = mask_of(losses)
    expected_total = (expected_losses * row_weight)[mask].sum()
    expected = torch.autograd.grad(expected_total * 3.0, parameters)

    assert losses.dtype == torch.float32
    assert not losses.requires_grad
    torch.testing.assert_close(losses.double(), expected_losses.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total.double(), expected_total.detach(), rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.double() - theirs.double()).norm() <= tolerance * theirs.double().norm()
    assert (found[0][~mask] == 0).all()


def tolerance_of(dtype: torch.dtype, method: HeadMethod | None = None) -> float:
    """Where the inputs are bf16, so are the gradients: 8 significant bits."""
    if dtype == torch.bfloat16:
        return 5e-3
    return 1e-3 if method == "cache" else 1e-5


@pytest.mark.parametrize(
    ("chunk_rows", "logit_scale", "method", "dtype", "bias"), EVERY_PAIR, indirect=["chunk_rows"], ids=str
)
@pytest.mark.usefixtures("chunk_rows")
def test_every_method_gives_the_gradients_of_float64(
    logit_scale: float, method: HeadMethod, dtype: torch.dtype, bias: bool
) -> None:
    cut = 1.5 if logit_scale < 1 else 4.0

    def loss(
        hidden: Tensor, weight: Tensor, targets: Tensor, row_weight: Tensor, offset: Tensor | None, _: float
    ) -> tuple[Tensor, Tensor]:
        select = Larger(cut, LossesAbove(cut + 0.5, 0.5))
        return selective_loss(
            hidden, weight, targets, row_weight, select, offset, method=method, logit_scale=logit_scale
        )

    assert_parity(
        loss,
        lambda losses: losses > cut,
        dtype=dtype,
        bias=bias,
        logit_scale=logit_scale,
        tolerance=tolerance_of(dtype, method),
    )


def entropies(hidden: Tensor, weight: Tensor, bias: Tensor | None, logit_scale: float) -> Tensor:
    logits = hidden.double() @ weight.double().t()
    logits = (logits if bias is None else logits + bias.double()) * logit_scale
    return torch.distributions.Categorical(logits=logits).entropy()


@pytest.mark.parametrize(
    ("chunk_rows", "logit_scale", "method", "dtype", "bias"), EVERY_PAIR, indirect=["chunk_rows"], ids=str
)
@pytest.mark.usefixtures("chunk_rows")
def test_a_choice_by_entropy_gives_the_gradients_of_float64(
    logit_scale: float, method: HeadMethod, dtype: torch.dtype, bias: bool
) -> None:
    hidden, weight, _, offset, _ = inputs(dtype, bias)
    of_rows = entropies(hidden, weight, offset, logit_scale).detach()
    cut = float(of_rows.sort().values[ROWS // 2 - 1 : ROWS // 2 + 1].mean())

    def loss(
        hidden: Tensor, weight: Tensor, targets: Tensor, row_weight: Tensor, offset: Tensor | None, _: float
    ) -> tuple[Tensor, Tensor]:
        select = Larger(cut, LossesAbove(cut + 0.1, 0.3), by_entropy=True)
        return selective_loss(
            hidden, weight, targets, row_weight, select, offset, method=method, logit_scale=logit_scale
        )

    assert_parity(
        loss,
        lambda _: of_rows > cut,
        dtype=dtype,
        bias=bias,
        logit_scale=logit_scale,
        tolerance=tolerance_of(dtype, method),
    )


@pytest.mark.usefixtures("chunk_rows")
def test_the_entropies_of_a_softmax_are_those_of_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where exponentials are 0 because logits are -inf or small, and in blocks of columns."""
    monkeypatch.setattr(head_pass, "_COLUMNS", 7)
    hidden, weight, targets, offset, _ = inputs()
    assert offset is not None
    with torch.no_grad():
        weight *= torch.linspace(0.1, 30.0, VOCAB)[:, None]
        offset[3] = float("-inf")
        head = head_pass.HeadPass(hidden, weight, offset, targets, 1.0)
        found = head.softmax(torch.arange(ROWS), entropies=True).entropies
        assert found is not None
        log_p = (hidden.double() @ weight.double().t() + offset.double()).log_softmax(1)
    expected = torch.special.entr(log_p.exp()).sum(1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert expected.min() < 0.01
    hidden.data[2] = float("nan")
    head = head_pass.HeadPass(hidden.detach(), weight.detach(), None, targets, 1.0)
    found = head.softmax(torch.arange(ROWS), entropies=True).entropies
    assert found is not None
    assert found.isnan().nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize(
    ("chunk_rows", "logit_scale", "dtype"),
    [(*case[:2], case[3]) for case in EVERY_PAIR],
    indirect=["chunk_rows"],
    ids=str,
)
@pytest.mark.usefixtures("chunk_rows")
def test_every_row_gives_the_gradients_of_float64(logit_scale: float, dtype: torch.dtype) -> None:
    assert_parity(
        weighted_loss,
        lambda losses: torch.ones_like(losses, dtype=torch.bool),
        dtype=dtype,
        bias=True,
        logit_scale=logit_scale,
        tolerance=tolerance_of(dtype),
    )


@pytest.mark.usefixtures("chunk_rows")
@pytest.mark.parametrize("forecast", FORECASTS.values(), ids=FORECASTS)
def test_a_bracket_is_exact_whatever_was_forecast(forecast: LossesAbove | None) -> None:
    assert_parity(
        lambda hidden, weight, targets, row_weight, offset, logit_scale: selective_loss(
            hidden, weight, targets, row_weight, Larger(5.0, forecast), offset, method="bracket"
        ),
        lambda losses: losses > 5.0,
        dtype=torch.float32,
        bias=True,
        logit_scale=1.0,
        tolerance=1e-5,
    )


@pytest.mark.parametrize(
    ("chunk_rows", "logit_scale", "dtype", "bias"),
    [(*case[:2], *case[3:]) for case in EVERY_PAIR],
    indirect=["chunk_rows"],
    ids=str,
)
@pytest.mark.usefixtures("chunk_rows")
def test_a_deferred_pass_gives_the_gradients_of_float64(logit_scale: float, dtype: torch.dtype, bias: bool) -> None:
    cut = 1.5 if logit_scale < 1 else 4.0

    def loss(
        hidden: Tensor, weight: Tensor, targets: Tensor, row_weight: Tensor, offset: Tensor | None, logit_scale: float
    ) -> HeadOutput:
        # The rows of a deferred pass have equal weights.
        row_weight.fill_(1.0)
        deferred = Deferred()
        total, losses = deferred_loss(hidden, weight, targets, deferred, offset, logit_scale)
        assert float(total.detach()) == 0.0
        output = HeadOutput(total, losses, torch.zeros_like(losses, dtype=torch.bool), no_threshold(losses.device))
        mask = losses > cut
        rows = mask.nonzero().squeeze(1)
        return output.decided(deferred, Known(mask, rows, rest=rows[:0]))

    assert_parity(
        loss,
        lambda losses: losses > cut,
        dtype=dtype,
        bias=bias,
        logit_scale=logit_scale,
        tolerance=tolerance_of(dtype),
    )


def test_float64_agrees_with_float64_to_its_last_digits() -> None:
    hidden, weight, targets, offset, row_weight = inputs(torch.float64)
    assert offset is not None
    for logit_scale in LOGIT_SCALES:
        total, losses, _ = weighted_loss(hidden, weight, targets, row_weight.double(), offset, logit_scale)
        expected = exact(hidden, weight, targets, offset, logit_scale)
        torch.testing.assert_close(losses, expected.detach(), rtol=1e-13, atol=1e-13)
        found = torch.autograd.grad(total, [hidden, weight, offset])
        theirs = torch.autograd.grad((expected * row_weight.double()).sum(), [hidden, weight, offset])
        torch.testing.assert_close(found, theirs, rtol=1e-10, atol=1e-12)


def test_a_bf16_head_multiplies_to_float32() -> None:
    hidden, weight, targets, _, _ = inputs(torch.bfloat16, bias=False)
    expected = exact(hidden, weight, targets, None)
    assert (measure(hidden, weight, targets).losses - expected).abs().max() < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_selection_runs_its_backward(method: HeadMethod) -> None:
    hidden, weight, targets, _, row_weight = inputs()
    select = Larger(1000.0, LossesAbove(8.0, 0.5))
    total, *_ = selective_loss(hidden, weight, targets, row_weight, select, method=method)
    assert total.item() == 0.0
    grad_hidden, grad_weight = torch.autograd.grad(total, [hidden, weight])
    assert (grad_hidden == 0).all()
    # A wrong guess is taken away by its own recomputation.
    assert grad_weight.abs().max() < 1e-5


def test_no_rows_at_all_run_their_backward() -> None:
    hidden, weight, targets, offset, row_weight = inputs()
    none = torch.empty(0, dtype=torch.int64)
    total, losses, _ = weighted_loss(hidden[none], weight, targets[none], row_weight[none], offset)
    assert len(losses) == 0
    assert all((grad == 0).all() for grad in torch.autograd.grad(total, [hidden, weight]))


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_needs_no_gradient_gets_none(frozen: str) -> None:
    hidden, weight, targets, _, row_weight = inputs(bias=False)
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    trained = weight if frozen == "hidden" else hidden
    total, *_ = selective_loss(hidden, weight, targets, row_weight, Larger(5.0))
    expected = (exact(hidden, weight, targets, None) * row_weight)[measure(hidden, weight, targets).losses > 5.0].sum()
    (ours,), (theirs,) = torch.autograd.grad(total, [trained]), torch.autograd.grad(expected, [trained])
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_a_second_backward_is_refused() -> None:
    hidden, weight, targets, _, row_weight = inputs(bias=False)
    total, *_ = weighted_loss(hidden, weight, targets, row_weight)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        total.backward()


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_not_finite_names_its_row(method: HeadMethod) -> None:
    hidden, weight, targets, _, row_weight = inputs()
    with torch.no_grad():
        hidden[5], hidden[20] = float("nan"), float("inf")
    with pytest.raises(NonFiniteCriterion) as raised:
        selective_loss(hidden, weight, targets, row_weight, Larger(5.0, LossesAbove(5.0, 0.6)), method=method)
    assert raised.value.places == [5, 20]


def test_entropies_come_with_the_losses() -> None:
    hidden, weight, targets, offset, _ = inputs()
    losses, entropies = measure(hidden, weight, targets, Measure(entropies=True), offset).columns
    assert offset is not None
    probabilities = torch.softmax(hidden.double() @ weight.double().t() + offset.double(), 1)
    expected = -(probabilities * probabilities.log()).sum(1)
    torch.testing.assert_close(entropies.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses, measure(hidden, weight, targets, LOSSES, offset).losses, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["bracket", "recompute"])
def test_no_tensor_of_all_logits(method: HeadMethod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_pass, "_LOGIT_BYTES_ON_CPU", 4 * VOCAB * 4)
    hidden, weight, targets, _, row_weight = inputs()
    with LargestTensor(VOCAB) as seen:
        select = Larger(5.0, LossesAbove(5.0, 0.6))
        selective_loss(hidden, weight, targets, row_weight, select, method=method)[0].backward()
    assert seen.rows == 4


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """The most rows of any tensor as wide as the vocabulary."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.ndim == 2 and result.shape[1] == self.width:
            self.rows = max(self.rows, result.shape[0] if result.shape[0] != WIDTH else 0)
        return result


def test_the_cache_is_two_bytes_a_logit() -> None:
    assert cache_bytes(4096, 32_000) == 2 * 4096 * 32_000
