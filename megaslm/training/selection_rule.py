"""The rule that selects targets in a run, and their weights, from its settings."""

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch

from megaslm.config.schema import RunConfig
from megaslm.config.selection import SlmSection
from megaslm.slm.criterion import Criterion, Formula, formula_of
from megaslm.slm.distillation import DistilledWeights
from megaslm.slm.rule import KeepRatio, SelectionRule
from megaslm.slm.selection import TOP, Policy
from megaslm.slm.weights import (
    ColumnWeights,
    EntropyWeights,
    ProbabilityWeights,
    SigmoidWeights,
    SignedWeights,
    WeightRule,
)
from megaslm.stream.loader import WeightRange


def rule_of(config: RunConfig, domains: Sequence[str]) -> SelectionRule:
    """The rule of a run with `objective: slm` that reads these domains."""
    slm = config.slm
    of_domains = slm.keep_ratio_of_domains
    return SelectionRule(
        KeepRatio(
            slm.keep_ratio,
            slm.keep_ratio_warmup_tokens,
            tuple((point.tokens, point.keep_ratio) for point in slm.keep_ratio_schedule),
        ),
        criterion=criterion_of(slm),
        scope=slm.scope,
        mode=slm.mode,
        max_ref_loss=slm.max_ref_loss,
        measure_rest=slm.measure_unselected,
        seed=config.seed,
        domain_ratios=tuple(map(of_domains.get, domains)) if of_domains else (),
        policy=_policy_of(slm),
    )


def criterion_of(slm: SlmSection) -> Criterion | Formula:
    """What a run sorts targets by."""
    return cast(Criterion, slm.criterion) if slm.expression is None else Formula(slm.expression.terms)


def sorts_by_entropy(config: RunConfig) -> bool:
    """Whether the entropies of the model's own predictions sort the targets of a run."""
    return config.train.objective == "slm" and config.slm.sorts_by_entropy


def _policy_of(slm: SlmSection) -> Policy:
    match slm.policy:
        case "top":
            return TOP
        case "band":
            return Policy(skip_ratio=slm.skip_ratio)
        case "stochastic":
            return Policy(temperature=slm.temperature)
        case "threshold" | "dataset":
            assert slm.threshold is not None, "that of the data set is computed at the start"
            return Policy(threshold=slm.threshold)


def weight_rule(slm: SlmSection) -> WeightRule | None:
    """The weights of targets; None where all are 1."""
    weight, distill = slm.weight, slm.distill
    if slm.distills:
        return partial(DistilledWeights, distill.weight, distill.temperature, distill.on == "unselected")
    match weight.by:
        case "hard":
            return None
        case "probability":
            return lambda _: ProbabilityWeights(weight.power)
        case "entropy":
            return lambda _: EntropyWeights(weight.power, weight.top_tokens)
        case "column":
            return partial(ColumnWeights, weight.bound_nats)
        case "sigmoid":
            assert weight.temperature is not None, "the schema lets no other sigmoid through"
            return partial(SigmoidWeights, formula_of(criterion_of(slm)), weight.temperature, weight.center_nats)
        case "signed":
            assert weight.negative is not None, "the schema lets no other sign through"
            assert weight.bound_nats is not None, "the schema lets no other sign through"
            return partial(SignedWeights, weight.negative, weight.bound_nats)


def weight_range(config: RunConfig) -> WeightRange | None:
    """What the weights of the dataset may be; None where the run does not use them."""
    weight = config.slm.weight
    if config.train.objective != "slm" or weight.by != "column":
        return None
    largest = torch.finfo(torch.float32).max
    return (0.0 if weight.bound_nats is None else -largest), largest
