"""Distillation in the head: losses and gradients against the definition in float64, through each way of the head."""

from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megaslm.slm import head_pass
from megaslm.slm.choice import Deferred, Known
from megaslm.slm.distillation import DistilledWeights
from megaslm.slm.keys import target_keys
from megaslm.slm.targets import Targets
from megaslm.slm.token_loss import HeadMethod, deferred_loss, selective_loss, weighted_loss
from tests.unit.slm.test_weights import CUT, METHODS, ROWS, VOCAB, Above, Inputs

Rule = tuple[float, float, bool]
"""The share of the divergence, the temperature, and whether it is that of unselected targets."""
RULES: list[Rule] = [(0.3, 1.0, False), (1.0, 2.0, False), (0.5, 0.7, True), (0.8, 3.0, True)]


@dataclass(frozen=True)
class Drawn:
    """A head's inputs, and K of the tokens of another prediction."""

    inputs: Inputs
    count: int

    @property
    def targets(self) -> Targets:
        logits = 2.0 * torch.randn(1, ROWS, VOCAB, generator=torch.Generator().manual_seed(3))
        top = logits.log_softmax(2).topk(self.count)
        rest = logits.softmax(2).scatter(2, top.indices, 0.0).sum(2, keepdim=True).log()
        stored = torch.cat([top.values, rest], 2).clamp(min=-65504.0).half()
        return replace(self.inputs.targets, columns={"ref_top_logprob": stored, "ref_top_id": top.indices.int()})

    def weights(self, rule: Rule) -> DistilledWeights:
        return DistilledWeights(*rule, self.targets)

    def total(self, rule: Rule, mask: Tensor) -> Tensor:
        """By the formula of docs/concepts.md, with the K + 1 probabilities of each row in a list."""
        (share, temperature, on_others), (stored, ids) = rule, self.targets.columns.values()
        of_all, total = self.inputs.logits().softmax(1), torch.zeros((), dtype=torch.float64)
        for row in range(ROWS):
            if not (mask[row] or (on_others and self.targets.valid[0, row])):
                continue
            top = [of_all[row, token] for token in ids[0, row].tolist()]
            others = set(range(VOCAB)) - set(ids[0, row].tolist())
            rest = [of_all[row, sorted(others)].sum()] if others else []
            model = torch.stack([*top, *rest]) ** (1 / temperature)
            reference = stored[0, row, : len(model)].double().exp() ** (1 / temperature)
            model, reference = model / model.sum(), reference / reference.sum()
            divergence = temperature**2 * (reference * (reference / model).log()).sum()
            cross_entropy = -of_all[row, self.inputs.tokens[row]].log()
            if on_others:
                total = total + (cross_entropy if mask[row] else share * divergence)
            else:
                total = total + (1 - share) * cross_entropy + share * divergence
        return total

    def require(self, rule: Rule, mask: Tensor, total: Tensor, limit: float, *, value: bool = True) -> None:
        expected = self.total(rule, mask)
        if value:
            torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-4)
        found = torch.autograd.grad(total * 3.0, self.inputs.parameters)
        wanted = torch.autograd.grad(expected * 3.0, self.inputs.parameters)
        for ours, theirs in zip(found, wanted, strict=True):
            assert (ours.double() - theirs.double()).norm() <= limit * theirs.double().norm()


@pytest.fixture(params=[1, 8, 1000])
def _chunk_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_pass, "_LOGIT_BYTES_ON_CPU", 4 * VOCAB * request.param)


@pytest.mark.usefixtures("_chunk_rows")
@pytest.mark.parametrize(("rule", "method", "count"), list(product(RULES, METHODS, (1, 7, VOCAB))))
def test_a_choice_by_loss(rule: Rule, method: HeadMethod, count: int) -> None:
    drawn = Drawn(Inputs.drawn(), count)
    inputs, ones = drawn.inputs, torch.ones(ROWS)
    output = selective_loss(
        inputs.hidden, inputs.matrix, inputs.tokens, ones, Above(drawn.weights(rule)), inputs.bias, method=method
    )
    mask = inputs.losses() > CUT
    assert torch.equal(output.mask, mask)
    assert 0 < int(mask.sum()) < ROWS
    drawn.require(rule, mask, output.total, 2e-3 if method == "cache" else 1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_rows_that_are_known(rule: Rule) -> None:
    drawn = Drawn(Inputs.drawn(), 7)
    inputs, mask = drawn.inputs, torch.arange(ROWS) % 3 == 0
    weights = drawn.weights(rule)
    total, _, _ = weighted_loss(inputs.hidden, inputs.matrix, inputs.tokens, mask.float(), inputs.bias, further=weights)
    drawn.require(rule, mask, total, 1e-5)
    deferred = Deferred()
    total, _ = deferred_loss(inputs.hidden, inputs.matrix, inputs.tokens, deferred, inputs.bias)
    rows = mask.nonzero().squeeze(1)
    deferred.known = Known(mask, rows, rows[:0], weights)
    drawn.require(rule, mask, total, 1e-5, value=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_prediction_that_is_certain_is_finite(dtype: torch.dtype) -> None:
    """The probabilities of most buckets are 0 in float32."""
    logits = torch.full((2, 40), -200.0, dtype=dtype)
    logits[0, 3] = logits[1, 7] = 0.0
    hidden = logits.clone().requires_grad_()
    stored = torch.tensor([[[-0.1, -4.0, -2.6]] * 2]).half()
    targets = Targets(
        torch.ones(1, 2, dtype=torch.bool),
        target_keys(torch.tensor([0]), 0, 2),
        {"ref_top_logprob": stored, "ref_top_id": torch.tensor([[[3, 5], [3, 5]]], dtype=torch.int32)},
    )
    total, _, _ = weighted_loss(
        hidden,
        torch.eye(40, dtype=dtype),
        torch.tensor([3, 3]),
        torch.ones(2),
        further=DistilledWeights(0.5, 4.0, False, targets),
    )
    [gradient] = torch.autograd.grad(total, [hidden])
    assert torch.isfinite(total)
    assert torch.isfinite(gradient).all()
    assert (gradient[:, 5] < -0.1).all()


def test_equal_predictions_have_no_divergence() -> None:
    drawn = Drawn(Inputs.drawn(), 7)
    logits = drawn.inputs.logits().detach()
    top = logits.log_softmax(1).topk(7)
    rest = logits.softmax(1).scatter(1, top.indices, 0.0).sum(1, keepdim=True).log()
    stored = torch.cat([top.values, rest], 1).float()[None]
    targets = replace(drawn.targets, columns={"ref_top_logprob": stored, "ref_top_id": top.indices[None].int()})
    inputs = drawn.inputs
    total, _, _ = weighted_loss(
        inputs.hidden,
        inputs.matrix,
        inputs.tokens,
        torch.ones(ROWS),
        inputs.bias,
        further=DistilledWeights(1.0, 2.0, False, targets),
    )
    assert abs(float(total.detach())) < 1e-4
    assert all(part.abs().max() < 1e-4 for part in torch.autograd.grad(total, inputs.parameters))
    assert F.cross_entropy(logits, inputs.tokens) > 1.0
