"""Each policy selects the set of a plain NumPy reference, on any division into ranks and micro-steps."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import product
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from megaslm.config.expression import expression_of
from megaslm.errors import NonFiniteCriterion
from megaslm.slm.choice import Every, HeadOutput, Known
from megaslm.slm.criterion import Criterion, Draw, Formula
from megaslm.slm.keys import hash_of, target_keys
from megaslm.slm.measure import Measured
from megaslm.slm.objective import SelectiveObjective
from megaslm.slm.rule import KeepRatio, Moment, Scope, SelectionRule
from megaslm.slm.selection import Policy
from megaslm.slm.targets import Targets
from megaslm.slm.topk import AllReduceSum, on_this_rank_alone, select_top
from tests.chosen import joined, output_of
from tests.pairwise import pairwise
from tests.threads import run_together

ROWS, LENGTH, SEED, STEP = 16, 9, 3, 7
CAP = 3.0
POLICIES = {
    "top": Policy(),
    "band": Policy(skip_ratio=Decimal("0.15")),
    "long skip": Policy(skip_ratio=Decimal("0.7")),
    "stochastic": Policy(temperature=0.5),
    "cold": Policy(temperature=1e-3),
    "threshold": Policy(threshold=0.5),
    "high threshold": Policy(threshold=100.0),
}


Columns = dict[str, NDArray[np.float64]]
EXPRESSIONS: dict[str, Callable[[Columns], NDArray[np.float64]]] = {
    "loss - ref_loss": lambda of: of["loss"] - of["ref_loss"],
    "ref_loss - ref_entropy": lambda of: of["ref_loss"] - of["ref_entropy"],
    "history - 0.5 * loss": lambda of: of["history"] - 0.5 * of["loss"],
    "max(loss, 2, entropy) * -history / 4 + abs(weight - entropy)": lambda of: (
        np.maximum(np.maximum(of["loss"], 2), of["entropy"]) * -of["history"] / 4 + np.abs(of["weight"] - of["entropy"])
    ),
}
"""By each an oracle in float64."""
DOMAINS = 3
DOMAIN_RATIOS: dict[str, tuple[Decimal | None, ...]] = {
    "together": (),
    "apart": (None, Decimal("0.2"), Decimal("0.8")),
    "whole": (Decimal(1), None, Decimal(1)),
}


@dataclass(frozen=True)
class Case:
    policy: str
    criterion: str
    scope: Scope
    keep_ratio: str
    max_ref_loss: float | None
    domains: str
    ranks: int
    micro_steps: int

    @property
    def rule(self) -> SelectionRule:
        return SelectionRule(
            KeepRatio(Decimal(self.keep_ratio)),
            criterion_named(self.criterion),
            self.scope,
            max_ref_loss=self.max_ref_loss,
            seed=SEED,
            domain_ratios=DOMAIN_RATIOS[self.domains],
            policy=POLICIES[self.policy],
        )


CASES = pairwise(
    [
        case
        for case in (
            Case(*values)
            for values in product(
                POLICIES,
                ("excess", "loss", "student_entropy", "reference", "entropy", *EXPRESSIONS),
                ("batch", "sequence"),
                ("0.01", "0.3", "0.6", "1"),
                (None, CAP),
                DOMAIN_RATIOS,
                (1, 2, 4),
                (1, 2, 4),
            )
        )
        # A fixed threshold has one scope, and is none of a domain's share. Domains are sorted within the step.
        if (case.scope == "batch" or (POLICIES[case.policy].threshold is None and case.domains == "together"))
        and (case.domains == "together" or POLICIES[case.policy].threshold is None)
    ],
    vars,
)


def criterion_named(criterion: str) -> Criterion | Formula:
    expression = expression_of(criterion)
    return cast(Criterion, criterion) if expression is None else Formula(expression.terms)


@dataclass(frozen=True)
class Step:
    """The targets of a step, and the losses and entropies that a model has there."""

    targets: Targets
    losses: Tensor
    entropies: Tensor

    def of(self, rank: int, ranks: int, micro_steps: int) -> list["Step"]:
        """The micro-batches of a rank: every row is on one rank, in one of them."""
        mine = [slice(rank + ranks * part, None, ranks * micro_steps) for part in range(micro_steps)]
        return [Step(self.targets[rows], self.losses[rows], self.entropies[rows]) for rows in mine]

    @property
    def measured(self) -> Measured:
        return Measured(self.losses, self.entropies)


def drawn_step(seed: int) -> Step:
    """Many values tie, one row has no valid target; each value is a multiple of 1/4, exact in float32."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(ROWS, LENGTH, generator=generator) < 0.8
    valid[2] = False
    columns = torch.randint(0, 20, (6, ROWS, LENGTH), generator=generator) / 4
    losses, entropies, ref_loss, ref_entropy, weight, history = columns
    rows = torch.randperm(1000, generator=generator)[:ROWS]
    domain = (rows % DOMAINS)[:, None].expand(ROWS, LENGTH)
    targets = Targets(
        valid,
        target_keys(rows, 0, LENGTH),
        {
            "ref_loss": ref_loss,
            "ref_entropy": ref_entropy,
            "domain": domain,
            "weight": weight,
            "history": history,
        },
    )
    return Step(targets, losses, entropies)


def values_of(step: Step, rule: SelectionRule) -> NDArray[np.float64]:
    """What ranks the targets, in float64; a draw's, rounded to float32 as the keys break ties of these."""
    losses, ref_loss = step.losses.double().numpy(), step.targets.column("ref_loss").double().numpy()
    of_criterion: dict[Criterion | Formula, NDArray[np.float64]] = {
        "excess": losses - ref_loss,
        "loss": losses,
        "student_entropy": step.entropies.double().numpy(),
        "reference": -ref_loss,
        "entropy": -step.targets.column("ref_entropy").double().numpy(),
    }
    columns = {"loss": losses, "entropy": step.entropies.double().numpy()}
    columns |= {
        name: step.targets.column(name).double().numpy() for name in ("ref_loss", "ref_entropy", "weight", "history")
    }
    of_expression = {criterion_named(text): expected(columns) for text, expected in EXPRESSIONS.items()}
    values = np.asarray((of_criterion | of_expression)[rule.criterion], dtype=np.float64)
    if rule.policy.temperature is None:
        return values
    uniform = (hash_of(step.targets.keys, rule.seed, STEP).numpy() + 0.5) / 2**31
    return (values / rule.policy.temperature - np.log(-np.log(uniform))).astype(np.float32).astype(np.float64)


def expected_keys(step: Step, rule: SelectionRule) -> set[int]:
    """By sorting: the definition of each policy."""
    values, valid, keys = values_of(step, rule), step.targets.valid.numpy(), step.targets.keys.numpy()
    eligible = valid.copy()
    if rule.max_ref_loss is not None:
        eligible &= step.targets.column("ref_loss").numpy() <= rule.max_ref_loss
    if rule.policy.threshold is not None:
        return set(keys[eligible & (values >= rule.policy.threshold)].tolist())
    half, own = Decimal("0.5"), rule.keep_ratio.target
    groups = [([row], own) for row in range(ROWS)] if rule.scope == "sequence" else [(list(range(ROWS)), own)]
    if rule.domain_ratios:
        of_rows = step.targets.column("domain")[:, 0].numpy()
        groups = [
            (np.flatnonzero(of_rows == number).tolist(), own if ratio is None else ratio)
            for number, ratio in enumerate(rule.domain_ratios)
        ]
    found: set[int] = set()
    for group, ratio in groups:
        count = int(valid[group].sum())
        skipped = int(min(rule.policy.skip_ratio, 1 - ratio) * count + half)
        candidates = sorted(zip((-values[group][eligible[group]]).tolist(), keys[group][eligible[group]], strict=True))
        found |= {int(key) for _, key in candidates[skipped : skipped + int(ratio * count + half)]}
    return found


def chosen_keys(step: Step, rule: SelectionRule, ranks: int, micro_steps: int) -> tuple[set[int], set[int]]:
    """The keys that all ranks select together, and the denominators that they divide by."""

    def rank(number: int, all_reduce_sum: AllReduceSum) -> tuple[list[int], int]:
        parts = step.of(number, ranks, micro_steps)
        plan = SelectiveObjective(rule).plan_step(
            joined([part.targets for part in parts]),
            micro_steps,
            Moment(STEP, 0),
            lambda micro_batch: parts[micro_batch].measured,
            all_reduce_sum,
        )
        outputs = [output_of(choice, *part.measured.columns) for choice, part in zip(plan.choices, parts, strict=True)]
        masks = [output.mask for output in outputs]
        keys = [key for part, mask in zip(parts, masks, strict=True) for key in part.targets.keys[mask].tolist()]
        if plan.denominator is None:
            assert micro_steps == 1
            return keys, int(all_reduce_sum(masks[0].sum()))
        return keys, int(plan.denominator)

    keys, denominators = zip(*run_together(ranks, rank), strict=True)
    every = [key for of_rank in keys for key in of_rank]
    assert len(every) == len(set(every))
    return set(every), set(denominators)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, vars(case).values())))
def test_every_division_selects_the_set_of_a_sort(case: Case) -> None:
    for seed in range(3):
        step = drawn_step(seed)
        expected = expected_keys(step, case.rule)
        keys, denominators = chosen_keys(step, case.rule, case.ranks, case.micro_steps)
        assert keys == expected
        assert denominators == {len(expected)}


def test_there_are_selections_of_all_sizes() -> None:
    """So the comparison above can tell."""
    sizes = {len(expected_keys(drawn_step(seed), case.rule)) for case in CASES for seed in range(3)}
    assert {0, 1} < sizes
    assert len(sizes) > 20


def test_a_band_of_two_halves_leaves_nothing_over() -> None:
    step = drawn_step(0)
    half = SelectionRule(KeepRatio(Decimal("0.5")), "loss", policy=Policy(skip_ratio=Decimal("0.5")))
    lower, _ = chosen_keys(step, half, 2, 2)
    upper, _ = chosen_keys(step, replace(half, policy=Policy()), 2, 2)
    assert not lower & upper
    assert lower | upper == set(step.targets.keys[step.targets.valid].tolist())


def test_a_band_begins_as_causal_language_modeling() -> None:
    """While k falls from 1, no more is skipped than k leaves out."""
    step, ratio = drawn_step(0), KeepRatio(Decimal("0.5"), warmup_tokens=1000)
    objective = SelectiveObjective(SelectionRule(ratio, "loss", policy=Policy(skip_ratio=Decimal("0.2"))))
    valid, keys = step.targets.valid, set(step.targets.keys[step.targets.valid].tolist())
    for tokens, skipped in ((0, "0"), (200, "0.1"), (1000, "0.2")):
        plan = objective.plan_step(step.targets, 1, Moment(1, tokens), lambda _: step.measured, on_this_rank_alone)
        mask = output_of(plan.choices[0], step.losses).mask
        assert isinstance(plan.choices[0], Every) == (tokens == 0)
        left_out = keys - set(step.targets.keys[mask].tolist())
        assert int(mask.sum()) == int(ratio.at(tokens) * int(valid.sum()) + Decimal("0.5"))
        largest = sorted(zip((-step.losses[valid]).tolist(), step.targets.keys[valid].tolist(), strict=True))
        count = int(Decimal(skipped) * int(valid.sum()) + Decimal("0.5"))
        assert {key for _, key in largest[:count]} <= left_out


def test_a_draw_is_in_proportion_and_without_replacement() -> None:
    """First draws have probabilities p; a pair is drawn first and second as in Plackett and Luce."""
    groups, weights = 20_000, torch.tensor([1.0, 2.0, 3.0, 4.0])
    keys = torch.arange(4 * groups).view(groups, 4)
    temperature = 0.5
    values = Draw(temperature, SEED, STEP).perturbed((weights.log() * temperature).expand(groups, 4), keys)
    probability = (weights / weights.sum()).double()
    second = torch.tensor(
        [sum(float(p * q / (1 - p)) for j, p in enumerate(probability) if j != i) for i, q in enumerate(probability)]
    )
    for count, expected in ((1, probability), (2, probability + second)):
        every = torch.ones_like(keys, dtype=torch.bool)
        mask = select_top(values, keys, every, torch.full((groups,), count)).mask
        # Four standard deviations of a share are at most 0.014.
        assert (mask.double().mean(0) - expected).abs().max() < 0.015


def test_a_draw_differs_by_step_and_seed() -> None:
    keys, values = target_keys(torch.arange(4), 0, 8), torch.zeros(4, 8)
    draws = [Draw(1.0, seed, step).perturbed(values, keys) for seed, step in ((0, 1), (0, 2), (1, 1))]
    assert torch.equal(draws[0], Draw(1.0, 0, 1).perturbed(values, keys))
    assert not any(torch.equal(one, draws[0]) for one in draws[1:])


@pytest.mark.parametrize("micro_steps", [1, 2])
def test_a_step_reports_a_fixed_threshold_and_none_of_a_draw(micro_steps: int) -> None:
    step = drawn_step(1)
    parts = step.of(0, 1, micro_steps)
    reported = {}
    for name in ("threshold", "high threshold", "stochastic", "band"):
        objective = SelectiveObjective(SelectionRule(KeepRatio(Decimal("0.6")), policy=POLICIES[name]))
        targets = joined([part.targets for part in parts])
        plan = objective.plan_step(
            targets, micro_steps, Moment(1, 0), lambda number: parts[number].measured, on_this_rank_alone
        )
        outputs = [output_of(choice, part.losses) for choice, part in zip(plan.choices, parts, strict=True)]
        found = objective.end_step(plan, HeadOutput.of_step(outputs))
        reported[name] = None if found is None else float(found)
    excess = step.losses - step.targets.column("ref_loss")
    band = expected_keys(step, SelectionRule(KeepRatio(Decimal("0.6")), policy=POLICIES["band"]))
    smallest = float(excess[torch.isin(step.targets.keys, torch.tensor(sorted(band)))].min())
    assert reported == {"threshold": 0.5, "high threshold": 100.0, "stochastic": None, "band": smallest}


@pytest.mark.parametrize(
    ("policy", "micro_steps"), [("band", 1), ("stochastic", 2), ("stochastic", 1), ("threshold", 1), ("threshold", 2)]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_cannot_be_ranked_stops_the_step(policy: str, micro_steps: int, value: float) -> None:
    step = drawn_step(1)
    place = tuple(step.targets.valid.nonzero()[3].tolist())
    step.losses[place] = value
    parts = step.of(0, 1, micro_steps)
    objective = SelectiveObjective(SelectionRule(KeepRatio(Decimal("0.6")), policy=POLICIES[policy]))
    targets = joined([part.targets for part in parts])

    def named() -> list[int]:
        try:
            plan = objective.plan_step(
                targets, micro_steps, Moment(1, 0), lambda number: parts[number].measured, on_this_rank_alone
            )
        except NonFiniteCriterion as error:
            return targets.keys.flatten()[error.places].tolist()
        (choice,) = plan.choices
        assert not isinstance(choice, Every | Known)
        return targets.keys.flatten()[choice(parts[0].losses.flatten()).non_finite].tolist()

    assert named() == [int(step.targets.keys[place])]
