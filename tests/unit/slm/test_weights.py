"""Weights of targets: the published formulas, in float64; and what each way through the head does with them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from math import exp, log

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megaslm.slm import head_pass
from megaslm.slm.choice import Deferred, Known, Selected, Weights
from megaslm.slm.criterion import Criterion, formula_of
from megaslm.slm.head_pass import HeadPass
from megaslm.slm.keys import target_keys
from megaslm.slm.targets import Targets
from megaslm.slm.token_loss import HeadMethod, deferred_loss, selective_loss, weighted_loss
from megaslm.slm.weights import (
    ColumnWeights,
    EntropyWeights,
    ProbabilityWeights,
    SigmoidWeights,
    SignedWeights,
    WeightRule,
)
from tests.chosen import selected
from tests.pairwise import pairwise

ROWS, WIDTH, VOCAB = 37, 24, 50
CUT = 4.0
BOUND_NATS = 3.5
METHODS: list[HeadMethod] = ["cache", "bracket", "recompute"]
RULES: dict[str, WeightRule] = {
    "probability": lambda _: ProbabilityWeights(0.5),
    "entropy": lambda _: EntropyWeights(2.0, 7),
    "sigmoid": lambda targets: SigmoidWeights(formula_of("excess"), 0.7, 0.3, targets),
    "signed": lambda targets: SignedWeights(0.25, BOUND_NATS, targets),
    "column": lambda targets: ColumnWeights(BOUND_NATS, targets),
}


@pytest.fixture
def logits() -> Tensor:
    """(6, 40) float64 logits, of which the first row is nearly certain."""
    drawn = 3.0 * torch.randn(6, 40, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    drawn[0, 3] = 40.0
    return drawn


TARGETS_OF_LOGITS = torch.tensor([3, 0, 11, 39, 5, 5])


def probabilities(row: list[float]) -> list[float]:
    """The softmax in Python's own floats, which are float64."""
    largest = max(row)
    exponentials = [exp(logit - largest) for logit in row]
    return [one / sum(exponentials) for one in exponentials]


def of_dft(row: list[float], target: int) -> float:
    """arXiv 2508.05629: the loss of a token is −sg(p) ln p."""
    return probabilities(row)[target]


def of_eaft(row: list[float], target: int) -> float:
    """arXiv 2601.02151: H / ln K, with H the entropy of the softmax over the K = 20 largest logits alone."""
    top = probabilities(sorted(row, reverse=True)[:20])
    return -sum(one * log(one) for one in top) / log(20)


def of_signed(row: list[float], target: int) -> float:
    """arXiv 2508.04329, of a negative token: −λ, here with λ = 0.25. The bound is ours."""
    return -0.25 if -log(probabilities(row)[target]) < BOUND_NATS else 0.0


def weights_in_the_head(weights: Weights, logits: Tensor, part: str = "of_selected") -> Tensor:
    """The weights of rows that have these logits: the head's matrix is the identity."""
    hidden = logits.float()
    head = HeadPass(hidden, torch.eye(logits.shape[1]), None, TARGETS_OF_LOGITS, 1.0)
    rows = torch.arange(len(hidden))
    found: Tensor = getattr(weights, part)(rows, head.softmax(rows))
    return found


EVERY_TARGET = Targets(torch.ones(1, 6, dtype=torch.bool), torch.arange(6)[None])


@pytest.mark.parametrize(
    ("weights", "part", "formula"),
    [
        (ProbabilityWeights(1.0), "of_selected", of_dft),
        (EntropyWeights(1.0, 20), "of_selected", of_eaft),
        (SignedWeights(0.25, BOUND_NATS, EVERY_TARGET), "of_others", of_signed),
    ],
    ids=["DFT", "EAFT", "signed"],
)
def test_weights_are_those_of_the_paper(
    logits: Tensor, weights: Weights, part: str, formula: Callable[[list[float], int], float]
) -> None:
    pairs = zip(logits.tolist(), TARGETS_OF_LOGITS.tolist(), strict=True)
    expected = torch.tensor([formula(row, target) for row, target in pairs], dtype=torch.float64)
    assert len(expected.unique()) > 1
    torch.testing.assert_close(weights_in_the_head(weights, logits, part).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("criterion", ["excess", "loss", "reference", "entropy"])
def test_a_sigmoid_is_of_the_targets_own_value(logits: Tensor, criterion: Criterion) -> None:
    ref_loss, ref_entropy = torch.linspace(0.5, 6.0, 6)[None], torch.linspace(4.0, 0.1, 6)[None]
    targets = replace(EVERY_TARGET, columns={"ref_loss": ref_loss, "ref_entropy": ref_entropy})
    losses = F.cross_entropy(logits, TARGETS_OF_LOGITS, reduction="none")
    values = {
        "excess": losses - ref_loss[0].double(),
        "loss": losses,
        "reference": -ref_loss[0].double(),
        "entropy": -ref_entropy[0].double(),
    }
    expected = 1 / (1 + torch.exp(-(values[criterion] - 0.5) / 1.5))
    found = weights_in_the_head(SigmoidWeights(formula_of(criterion), 1.5, 0.5, targets), logits)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_an_entropy_of_more_tokens_than_there_are_is_that_of_all(logits: Tensor) -> None:
    of_all = torch.softmax(logits, 1)
    expected = -(of_all * of_all.log()).sum(1) / log(40)
    found = weights_in_the_head(EntropyWeights(1.0, 1000), logits)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("vocabulary", [319, 320, 1003])
def test_the_most_likely_tokens_are_found_wherever_they_are(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(2)
    # Whole numbers, so that there are ties; a row whose largest are neighbours, and one whose largest are 16 apart.
    drawn = torch.randint(0, 9, (40, vocabulary), generator=generator).double()
    drawn[0, 5:20] += 9.0
    drawn[1, : 16 * 15 : 16] += 9.0
    drawn[2, -7:] += torch.arange(7)
    drawn[3:] += torch.randn(37, vocabulary, generator=generator)
    top = torch.softmax(drawn.topk(10).values, 1)
    expected = -(top * top.log()).sum(1) / log(10)
    hidden, rows = drawn.float(), torch.arange(40)
    head = HeadPass(hidden, torch.eye(vocabulary), None, torch.zeros(40, dtype=torch.int64), 1.0)
    found = EntropyWeights(1.0, 10).of_selected(rows, head.softmax(rows))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_negative_number_of_a_column_counts_up_to_the_bound(logits: Tensor) -> None:
    stored = torch.tensor([[-1.0, -0.5, 0.25, 2.0, -3.0, 0.0]])
    targets = replace(EVERY_TARGET, columns={"weight": stored})
    losses = F.cross_entropy(logits, TARGETS_OF_LOGITS, reduction="none")
    bound = float(losses.median()) + 0.01
    found = weights_in_the_head(ColumnWeights(bound, targets), logits)
    expected = [value if value >= 0 or loss < bound else 0.0 for value, loss in zip(stored[0], losses, strict=True)]
    assert found.tolist() == [float(value) for value in expected]
    assert torch.equal(weights_in_the_head(ColumnWeights(None, targets), logits), stored[0])


@dataclass
class Above:
    """Chooses the rows whose loss is above the cut, after a forecast that is a little off."""

    weights: Weights | None
    cut: float = CUT
    share: float = 0.5
    by_entropy: bool = False

    @property
    def forecast(self) -> "Above":
        return self

    def margin(self, losses: Tensor, rows: Tensor) -> Tensor:
        return losses - self.cut - torch.where(rows % 3 == 0, -1.5, 0.5)

    def __call__(self, losses: Tensor) -> Selected:
        return selected(losses > self.cut)

    def unsortable(self, losses: Tensor) -> Tensor:
        return torch.zeros_like(losses, dtype=torch.bool)


@dataclass(frozen=True)
class Inputs:
    """A head's inputs in float32, its targets, and what the definition makes of them in float64."""

    hidden: Tensor
    matrix: Tensor
    bias: Tensor
    tokens: Tensor
    targets: Targets

    @classmethod
    def drawn(cls) -> "Inputs":
        generator = torch.Generator().manual_seed(1)
        numbers = torch.rand(4, 1, ROWS, generator=generator)
        targets = Targets(
            valid=numbers[0] < 0.7,
            keys=target_keys(torch.tensor([0]), 0, ROWS),
            columns={"ref_loss": 8.0 * numbers[1], "weight": 3.0 * numbers[2] - 1.0},
        )
        return cls(
            torch.randn(ROWS, WIDTH, generator=generator).requires_grad_(),
            (0.3 * torch.randn(VOCAB, WIDTH, generator=generator)).requires_grad_(),
            torch.randn(VOCAB, generator=generator).requires_grad_(),
            torch.randint(0, VOCAB, (ROWS,), generator=generator),
            targets,
        )

    @property
    def parameters(self) -> list[Tensor]:
        return [self.hidden, self.matrix, self.bias]

    def logits(self) -> Tensor:
        return self.hidden.double() @ self.matrix.double().t() + self.bias.double()

    def losses(self) -> Tensor:
        return F.cross_entropy(self.logits(), self.tokens, reduction="none")

    def weights(self, name: str, mask: Tensor) -> Tensor:
        """(T,) float64, 0 where a row is not trained on."""
        losses, top = self.losses().detach(), torch.softmax(self.logits().detach().topk(7).values, 1)
        stored = self.targets.column("weight")[0].double()
        of_selected = {
            "probability": torch.exp(-losses) ** 0.5,
            "entropy": (-(top * top.log()).sum(1) / log(7)) ** 2,
            "sigmoid": 1 / (1 + torch.exp(-(losses - self.targets.column("ref_loss")[0].double() - 0.3) / 0.7)),
            "signed": torch.ones_like(losses),
            "column": stored.where((stored >= 0) | (losses < BOUND_NATS), 0.0),
        }[name]
        unlearned = self.targets.valid[0] & (losses < BOUND_NATS)
        return of_selected.where(mask, -0.25 * unlearned.double() if name == "signed" else 0.0)

    def gradients(self, name: str, mask: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((self.losses() * self.weights(name, mask)).sum() * 3.0, self.parameters)


def require_equal(inputs: Inputs, name: str, mask: Tensor, total: Tensor, applied: Tensor | None, limit: float) -> None:
    """The gradient of three times the total, and the weights, are those of the definition."""
    found = torch.autograd.grad(total * 3.0, inputs.parameters)
    for ours, theirs in zip(found, inputs.gradients(name, mask), strict=True):
        assert (ours.double() - theirs.double()).norm() <= limit * theirs.double().norm()
    assert applied is not None
    assert not applied.requires_grad
    # Of a cache the exponentials are rounded to bf16.
    assert (applied.double() - inputs.weights(name, mask)).abs().max() <= 10 * limit
    assert ((applied < 0) & ~mask).any() == (name == "signed")


Case = tuple[str, HeadMethod, int]
CASES: list[Case] = list(product(RULES, METHODS, (1, 8, 1000)))
EVERY_PAIR = pairwise(CASES, lambda case: {str(place): value for place, value in enumerate(case)})


@pytest.fixture
def chunk_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_pass, "_LOGIT_BYTES_ON_CPU", 4 * VOCAB * request.param)


@pytest.mark.parametrize(("name", "method", "chunk_rows"), EVERY_PAIR, indirect=["chunk_rows"], ids=str)
@pytest.mark.usefixtures("chunk_rows")
def test_a_choice_by_losses_has_the_gradients_of_float64(name: str, method: HeadMethod) -> None:
    inputs = Inputs.drawn()
    select = Above(RULES[name](inputs.targets))
    output = selective_loss(
        inputs.hidden, inputs.matrix, inputs.tokens, torch.ones(ROWS), select, inputs.bias, method=method
    )
    assert 5 < output.mask.sum() < ROWS - 5
    expected = float((inputs.losses() * inputs.weights(name, output.mask)).sum().detach())
    assert float(output.total.detach()) == pytest.approx(expected, rel=1e-3 if method == "cache" else 1e-5)
    require_equal(inputs, name, output.mask, output.total, output.applied, 1e-3 if method == "cache" else 1e-5)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("chunk_rows", [8], indirect=True)
@pytest.mark.usefixtures("chunk_rows")
def test_known_rows_have_the_gradients_of_float64(name: str) -> None:
    inputs = Inputs.drawn()
    weights, mask = RULES[name](inputs.targets), inputs.losses().detach() > CUT
    if weights.trains_others:
        rows = torch.arange(ROWS)
        own = mask.float()
    else:
        rows = mask.nonzero().squeeze(1)
        own = torch.ones(len(rows))
    total, _, applied = weighted_loss(
        inputs.hidden[rows], inputs.matrix, inputs.tokens[rows], own, inputs.bias, further=weights, numbers=rows
    )
    assert applied is not None
    of_all = torch.zeros(ROWS).index_copy(0, rows, applied)
    require_equal(inputs, name, mask, total, of_all, 1e-5)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("chunk_rows", [8], indirect=True)
@pytest.mark.usefixtures("chunk_rows")
def test_rows_that_become_known_before_the_backward_pass_have_them_too(name: str) -> None:
    inputs = Inputs.drawn()
    mask = inputs.losses().detach() > CUT
    deferred = Deferred(applied=torch.zeros(ROWS))
    zero, _ = deferred_loss(inputs.hidden, inputs.matrix, inputs.tokens, deferred, inputs.bias)
    rows = mask.nonzero().squeeze(1)
    deferred.known = Known(mask, rows, rows[:0], RULES[name](inputs.targets))
    found = torch.autograd.grad(zero * 3.0, inputs.parameters)
    for ours, theirs in zip(found, inputs.gradients(name, mask), strict=True):
        assert (ours.double() - theirs.double()).norm() <= 1e-5 * theirs.double().norm()
    assert deferred.applied is not None
    torch.testing.assert_close(deferred.applied.double(), inputs.weights(name, mask), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rule", [ProbabilityWeights(0.0), EntropyWeights(0.0, 20)], ids=["p", "H"])
def test_weights_of_1_change_no_bit(method: HeadMethod, rule: Weights) -> None:
    inputs = Inputs.drawn()
    head = (inputs.hidden, inputs.matrix, inputs.tokens, torch.ones(ROWS))
    pairs = [
        [
            selective_loss(*head, Above(weights), inputs.bias, method=method).total,
            weighted_loss(*head, inputs.bias, further=weights)[0],
        ]
        for weights in (None, rule)
    ]
    for plain, ones in zip(*pairs, strict=True):
        assert torch.equal(plain, ones)
        for one, other in zip(
            torch.autograd.grad(plain, inputs.parameters), torch.autograd.grad(ones, inputs.parameters), strict=True
        ):
            assert torch.equal(one, other)


def test_a_certain_prediction_has_an_entropy_of_0(logits: Tensor) -> None:
    logits[0] = -1000.0
    logits[0, 3] = 0.0
    assert weights_in_the_head(EntropyWeights(1.0, 20), logits)[0] == 0.0
