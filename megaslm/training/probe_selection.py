"""What a run's selection keeps of its probe rows."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megaslm.config.schema import RunConfig
from megaslm.observe.probe_files import ProbeRows
from megaslm.slm.rule import KeepRatio
from megaslm.slm.spans import SpanRule
from megaslm.slm.static import select_static
from megaslm.slm.targets import RankedTargets, Targets
from megaslm.slm.topk import kept, on_this_rank_alone, select_top


def ratio_at(config: RunConfig, tokens_seen: int) -> str | None:
    """The share of targets that the run trains on after `tokens_seen` targets, as a decimal; None if all."""
    if config.train.objective != "slm":
        return None
    return str(KeepRatio(config.slm.keep_ratio, config.slm.keep_ratio_warmup_tokens).at(tokens_seen))


def would_keep(
    config: RunConfig, rows: ProbeRows, losses: NDArray[np.float32], *, step: int, tokens_seen: int
) -> NDArray[np.bool_] | None:
    """The targets that the run's criterion and ratio keep of the probe rows, (R, L).

    The rows are sorted together, or each on its own under scope sequence: they stand for the rows of a step. A target
    whose value is NaN or infinite is not kept. None where the run trains on all valid targets, or the rows lack what
    the criterion sorts by.
    """
    slm = config.slm
    if config.train.objective != "slm":
        return None
    if rows.selected is not None:
        return rows.selected
    if (slm.needs_ref_loss and rows.ref_loss is None) or (slm.needs_ref_entropy and rows.ref_entropy is None):
        return None
    ratio = KeepRatio(slm.keep_ratio, slm.keep_ratio_warmup_tokens).at(tokens_seen)
    targets = _targets(rows, SpanRule.of(slm.granularity, slm.span_reach, rows.eos_id))
    groups = targets if slm.scope == "sequence" else targets.in_groups(1)
    if slm.criterion == "excess" or slm.criterion == "loss":
        ranked = RankedTargets(groups, groups.eligible(slm.max_ref_loss), slm.criterion)
        values = ranked.values(torch.from_numpy(losses))
        count = kept(groups.valid, ranked.eligible, ratio, on_this_rank_alone)
        mask = select_top(values, groups.keys, ranked.eligible & torch.isfinite(values), count).mask
    else:
        mask = select_static(slm.criterion, groups, ratio, slm.max_ref_loss, seed=config.seed, step=step).mask
    return mask.view(rows.valid.shape).numpy()


def _targets(rows: ProbeRows, spans: SpanRule | None) -> Targets:
    valid = torch.from_numpy(rows.valid)
    before, after = (None, None) if spans is None else spans.bounds(torch.from_numpy(rows.tokens))
    return Targets(
        valid=valid,
        keys=torch.arange(valid.numel()).view(valid.shape),
        ref_loss=_floats(rows.ref_loss),
        ref_entropy=_floats(rows.ref_entropy),
        before=before,
        after=after,
    )


def _floats(stored: NDArray[np.float16] | None) -> Tensor | None:
    return None if stored is None else torch.from_numpy(stored.astype(np.float32))
