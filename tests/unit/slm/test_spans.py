"""Targets that are sorted by the means of their spans."""

from dataclasses import replace
from decimal import Decimal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megaslm.errors import NonFiniteCriterion
from megaslm.slm.choice import HeadOutput
from megaslm.slm.keys import target_keys
from megaslm.slm.measure import Measured
from megaslm.slm.objective import SelectiveObjective
from megaslm.slm.rule import KeepRatio, Moment, SelectionRule
from megaslm.slm.spans import SpanRule, span_means
from megaslm.slm.targets import Targets
from megaslm.slm.topk import on_this_rank_alone
from megaslm.slm.valid_targets import valid_targets
from tests.chosen import output_of

EOS, ROWS, LENGTH = 2, 4, 12
START = Moment(step=1, tokens=0)
REACHES = [1, 3, None]


def drawn(seed: int) -> tuple[Tensor, Tensor]:
    """Tokens of short documents, and losses in 1/8 nat, so that float32 sums are exact."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 9, (ROWS, LENGTH + 1), generator=generator)
    return tokens, torch.randint(0, 64, (ROWS, LENGTH), generator=generator) / 8


def by_definition(tokens: Tensor, values: Tensor, valid: Tensor, reach: int | None) -> Tensor:
    """The mean over the valid targets at most `reach` places away in the same document."""
    means = torch.zeros_like(values)
    document = (tokens[:, :-1] == EOS).cumsum(1)
    for row in range(len(values)):
        for place in range(LENGTH):
            near = (torch.arange(LENGTH) - place).abs() <= (LENGTH if reach is None else reach)
            span = near & (document[row] == document[row, place]) & valid[row]
            if span.any():
                means[row, place] = values[row, span].double().mean()
    return means


def targets_of(tokens: Tensor, ref_loss: Tensor, reach: int | None) -> Targets:
    rule = SpanRule(EOS, reach)
    keys = target_keys(torch.arange(len(tokens)), 0, LENGTH)
    return Targets(valid_targets(tokens, EOS), keys, {"ref_loss": ref_loss}, *rule.bounds(tokens))


@given(seed=st.integers(0, 10_000), reach=st.sampled_from(REACHES))
@settings(deadline=None, max_examples=40)
def test_a_span_ends_at_its_reach_and_with_its_document(seed: int, reach: int | None) -> None:
    tokens, values = drawn(seed)
    valid = valid_targets(tokens, EOS)
    before, after = SpanRule(EOS, reach).bounds(tokens)
    expected = by_definition(tokens, values, valid, reach)
    assert torch.allclose(span_means(values, valid, before, after), expected, rtol=0, atol=2**-20)
    # The same means, bit for bit, however the rows are distributed.
    apart = [span_means(values[row], valid[row], before[row], after[row]) for row in range(ROWS)]
    assert torch.equal(torch.stack(apart), span_means(values, valid, before, after))


def test_the_settings_name_the_span() -> None:
    assert SpanRule.of("token", 16, EOS) is None
    assert SpanRule.of("span", 16, EOS) == SpanRule(EOS, 16)
    assert SpanRule.of("document", 16, EOS) == SpanRule(EOS, None)


def test_a_value_that_is_not_finite_is_in_no_mean_and_stays_at_its_place() -> None:
    values = torch.tensor([[1.0, float("nan"), 3.0, float("inf")]])
    everywhere = torch.ones(1, 4, dtype=torch.bool)
    before, after = SpanRule(EOS, None).bounds(torch.tensor([[5, 5, 5, 5, 5]]))
    means = span_means(values, everywhere, before, after)
    assert means[0, [0, 2]].tolist() == [2.0, 2.0]
    assert means[0, 1].isnan()
    assert means[0, 3].isinf()


@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("criterion", ["excess", "loss", "reference"])
@pytest.mark.parametrize("micro_steps", [1, 2])
def test_a_step_keeps_the_largest_means(criterion: str, reach: int | None, micro_steps: int) -> None:
    tokens, losses = drawn(1)
    _, ref_loss = drawn(2)
    targets = targets_of(tokens, ref_loss, reach)
    objective = SelectiveObjective(SelectionRule(KeepRatio(Decimal("0.3")), criterion))  # type: ignore[arg-type]
    size = ROWS // micro_steps
    parts = losses.split(size)
    for step in (1, 2):
        plan = objective.plan_step(
            targets, micro_steps, Moment(step, 0), lambda number: Measured(parts[number]), on_this_rank_alone
        )
        outputs = [output_of(choice, part) for choice, part in zip(plan.choices, parts, strict=True)]
        objective.end_step(plan, HeadOutput.of_step(outputs))
        mask = torch.cat([output.mask for output in outputs])
        values = {"excess": losses - ref_loss, "loss": losses, "reference": -ref_loss}[criterion]
        means = by_definition(tokens, values, targets.valid, reach)
        count = int(Decimal("0.3") * int(targets.valid.sum()) + Decimal("0.5"))
        assert int(mask.sum()) == count
        assert not (mask & ~targets.valid).any()
        assert means[mask].min() >= means[targets.valid & ~mask].max() - 2**-19


def test_a_running_threshold_compares_means() -> None:
    tokens, losses = drawn(3)
    targets = targets_of(tokens, torch.zeros(ROWS, LENGTH), 3)
    objective = SelectiveObjective(SelectionRule(KeepRatio(Decimal("0.4")), mode="running"))
    for step in range(1, 30):
        plan = objective.plan_step(targets, 1, Moment(step, 0), lambda number: Measured(losses), on_this_rank_alone)
        output = output_of(plan.choices[0], losses)
        objective.end_step(plan, HeadOutput.of_step([output]))
    assert plan.known_threshold is not None
    means = by_definition(tokens, losses, targets.valid, 3)
    assert 0 < int(output.mask.sum()) < int(targets.valid.sum())
    assert means[output.mask].min() >= means[targets.valid & ~output.mask].max() - 2**-19


def test_a_loss_that_is_not_finite_stops_the_step() -> None:
    tokens, losses = drawn(4)
    targets = targets_of(tokens, torch.zeros(ROWS, LENGTH), None)
    row, place = (int(number) for number in targets.valid.nonzero()[5])
    losses[row, place] = float("nan")
    objective = SelectiveObjective(SelectionRule(KeepRatio(Decimal("0.3"))))
    halves = losses.split(2)
    with pytest.raises(NonFiniteCriterion) as caught:
        objective.plan_step(targets, 2, START, lambda number: Measured(halves[number]), on_this_rank_alone)
    assert caught.value.places == [row * LENGTH + place]


def test_without_spans_each_target_has_its_own_value() -> None:
    tokens, losses = drawn(5)
    targets = replace(targets_of(tokens, losses, 1), before=None, after=None)
    assert torch.equal(targets.over_spans(losses), losses)
