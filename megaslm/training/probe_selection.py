"""What a run's selection keeps of its probe rows."""

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from megaslm.config.schema import RunConfig
from megaslm.observe.probe_files import ProbeRows
from megaslm.slm.criterion import Candidates, Draw, formula_of
from megaslm.slm.selection import StaticRule, select_by, select_static
from megaslm.slm.spans import SpanRule
from megaslm.slm.targets import Targets, in_any_group
from megaslm.slm.topk import on_this_rank_alone
from megaslm.training.selection_rule import rule_of


def ratio_at(config: RunConfig, tokens_seen: int) -> str | None:
    """The share of targets that the run is to train on after `tokens_seen` targets, as a decimal. None if it trains on
    all, from a fixed threshold on, or on a share of its own in each domain."""
    slm = config.slm
    if config.train.objective != "slm" or slm.has_fixed_threshold or slm.keep_ratio_of_domains:
        return None
    return str(rule_of(config, ()).keep_ratio.at(tokens_seen))


def would_keep(
    config: RunConfig,
    rows: ProbeRows,
    losses: NDArray[np.float32],
    entropies: NDArray[np.float32] | None = None,
    *,
    step: int,
    tokens_seen: int,
) -> NDArray[np.bool_] | None:
    """The targets that the run's criterion, policy and ratio keep of the probe rows, (R, L).

    The rows are sorted together, or each on its own under scope sequence: they stand for the rows of a step. A target
    whose value is NaN or infinite is not kept. None where the run trains on all valid targets, or the rows lack what
    the criterion sorts by.
    """
    slm = config.slm
    if config.train.objective != "slm":
        return None
    if rows.selected is not None or slm.criterion == "selected":
        return rows.selected
    if (slm.needs_ref_loss and rows.ref_loss is None) or (slm.needs_ref_entropy and rows.ref_entropy is None):
        return None
    if slm.expression is not None and not slm.expression.columns <= {"ref_loss", "ref_entropy"}:
        return None
    rule = rule_of(config, rows.domains)
    policy, ratio = rule.policy, rule.ratio_at(tokens_seen)
    targets = _targets(rows, SpanRule.of(slm.granularity, slm.span_reach, rows.eos_id))
    groups = targets if slm.scope == "sequence" else rule.whole_step(targets)
    if slm.sorts_by_model:
        draw = None if policy.temperature is None else Draw(policy.temperature, rule.seed, step)
        candidates = Candidates(groups, groups.eligible(slm.max_ref_loss), formula_of(rule.criterion), draw)
        values = candidates.values(torch.from_numpy(losses), None if entropies is None else torch.from_numpy(entropies))
        sortable = candidates.eligible & torch.isfinite(values)
        mask = select_by(policy, values, groups, sortable, ratio, on_this_rank_alone).mask
    else:
        mask = select_static(
            cast(StaticRule, rule.criterion),
            groups,
            ratio,
            slm.max_ref_loss,
            policy=policy,
            seed=rule.seed,
            step=step,
        ).mask
    return in_any_group(mask, rows.valid.size).view(rows.valid.shape).numpy()


def _targets(rows: ProbeRows, spans: SpanRule | None) -> Targets:
    valid = torch.from_numpy(rows.valid)
    before, after = (None, None) if spans is None else spans.bounds(torch.from_numpy(rows.tokens))
    return Targets(
        valid=valid,
        keys=torch.arange(valid.numel()).view(valid.shape),
        columns={
            "domain": torch.from_numpy(rows.domain.astype(np.int64))[:, None].expand_as(valid),
            **{
                name: torch.from_numpy(stored.astype(np.float32))
                for name, stored in (("ref_loss", rows.ref_loss), ("ref_entropy", rows.ref_entropy))
                if stored is not None
            },
        },
        before=before,
        after=after,
    )
