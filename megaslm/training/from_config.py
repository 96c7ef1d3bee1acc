"""What a run's configuration asks for, in the terms of those who do it."""

from megaslm.config.schema import FetchSection, RunConfig
from megaslm.data.loading.shards import FetchSettings
from megaslm.slm.objective import CausalObjective, Objective, SelectiveObjective
from megaslm.slm.rule import KeepRatio, SelectionRule
from megaslm.slm.threshold import SelectionState


def objective_of(config: RunConfig, selection: SelectionState) -> Objective:
    """The objective, selecting on from where an earlier run left off."""
    if config.train.objective == "clm":
        return CausalObjective()
    slm = config.slm
    rule = SelectionRule(
        KeepRatio(slm.keep_ratio, slm.keep_ratio_warmup_tokens),
        score=slm.score,
        scope=slm.scope,
        mode=slm.mode,
        max_ref_loss=slm.max_ref_loss,
        measure_rest=slm.measure_unselected,
        seed=config.seed,
    )
    return SelectiveObjective(rule, selection)


def fetch_settings(section: FetchSection) -> FetchSettings:
    """How shards of remote datasets are fetched."""
    limit_gib = section.cache_limit_gib
    return FetchSettings(
        cache_limit_bytes=None if limit_gib is None else int(limit_gib * (1 << 30)),
        retries=section.retries,
        timeout_seconds=section.timeout_seconds,
    )
