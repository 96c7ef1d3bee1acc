"""The rule that selects targets in a run, made from its settings."""

from collections.abc import Sequence
from typing import cast

from megaslm.config.schema import RunConfig
from megaslm.config.selection import SlmSection
from megaslm.slm.criterion import Criterion, Formula
from megaslm.slm.rule import KeepRatio, SelectionRule
from megaslm.slm.selection import TOP, Policy


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
